//! A disk in memory that can be switched off at any moment: deterministic, from a seed.
//!
//! Every file has the content that the system shows and, separately, what the disk surely has: the content at the last successful sync and
//! all writes since, of which a crash keeps any sectors, each in any of its versions, whatever the order of the writes. The directory too:
//! of the changes since the last `SyncDir` a crash keeps any subset. Files are found by their directory entry alone.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Completion, Device, DeviceError, DeviceOp, Done, FileName, Token};

/// What a crash keeps or loses as one piece.
pub(crate) const SECTOR_BYTES: usize = 512;

/// What goes wrong with one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with an I/O error. A failed write may have changed any of its sectors. After a failed sync what was written before is lost
    /// at a crash, even if a later sync succeeds.
    Io,
    /// No space is left; the first part of a write may be there.
    NoSpace,
    /// The machine goes off: this operation's effects may be there in part, nothing later happens.
    PowerOff,
    /// A write reports success, but its data goes elsewhere in the same file: this many bytes further on.
    Misdirected(u64),
    /// A write or a sync reports success and does nothing.
    Lost,
    /// A read returns data with one bit changed.
    BitFlip,
    /// A write reports success, but its first sector is zeros.
    Zeroed,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, data: Vec<u8> },
    Length(u64),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// What the system shows.
    shown: Vec<u8>,
    /// What the disk surely has.
    durable: Vec<u8>,
    /// What it may have besides.
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Set { file: FileName, inode: usize },
    Rename { from: FileName, to: FileName, inode: usize },
    Unset { file: FileName },
}

/// A disk in memory. Operations complete late and out of order, as its seed says; see [`SimDevice::crash`].
#[derive(Debug)]
pub struct SimDevice {
    inodes: Vec<Inode>,
    names: BTreeMap<FileName, usize>,
    durable_names: BTreeMap<FileName, usize>,
    pending_names: Vec<NameChange>,
    waiting: Vec<(Token, DeviceOp, Option<Fault>)>,
    faults: BTreeMap<u64, Fault>,
    capacity_bytes: u64,
    submitted: u64,
    random: u64,
    off: bool,
}

impl SimDevice {
    /// An empty disk.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            waiting: Vec::new(),
            faults: BTreeMap::new(),
            capacity_bytes: u64::MAX,
            submitted: 0,
            random: seed ^ 0x9E37_79B9_7F4A_7C15,
            off: false,
        }
    }

    /// Lets the operation that is the `number`th to be submitted, counted from 0, go wrong.
    pub fn inject(&mut self, number: u64, fault: Fault) {
        self.faults.insert(number, fault);
    }

    /// Lets writes beyond this sum of file lengths fail for want of space.
    pub fn set_capacity_bytes(&mut self, capacity_bytes: u64) {
        self.capacity_bytes = capacity_bytes;
    }

    /// How many operations have been submitted.
    #[must_use]
    pub fn submitted(&self) -> u64 {
        self.submitted
    }

    /// Whether a [`Fault::PowerOff`] has happened.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.off
    }

    /// The file as the system shows it.
    #[must_use]
    pub fn content(&self, file: &FileName) -> Option<&[u8]> {
        self.names.get(file).map(|inode| self.inodes[*inode].shown.as_slice())
    }

    /// Changes a file behind everybody's back, durably: bits of `mask` flip in the byte at `offset`. Whether there is such a byte.
    pub fn corrupt(&mut self, file: &FileName, offset: usize, mask: u8) -> bool {
        let Some(inode) = self.names.get(file).map(|inode| &mut self.inodes[*inode]) else { return false };
        for content in [&mut inode.shown, &mut inode.durable] {
            match content.get_mut(offset) {
                Some(byte) => *byte ^= mask,
                None => return false,
            }
        }
        true
    }

    /// Removes a file behind everybody's back, durably; whether it was there.
    pub fn lose(&mut self, file: &FileName) -> bool {
        self.durable_names.remove(file);
        self.names.remove(file).is_some()
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// The disk that the next start finds when the machine goes off now. This one stays as it is, so that many seeds can be tried.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        let mut after = Self::new(seed);
        // What was submitted and hasn't completed may have had its effect, or a part of it.
        let mut before = Self {
            inodes: self.inodes.clone(),
            names: self.names.clone(),
            durable_names: self.durable_names.clone(),
            pending_names: self.pending_names.clone(),
            ..Self::new(seed)
        };
        if !self.off {
            for (_, op, fault) in &self.waiting {
                if *fault != Some(Fault::Lost) {
                    before.may_happen(op);
                }
            }
        }
        // Three moods: nothing un-synced is kept, all is, or any part.
        let mood = after.random() % 4;
        let mut keeps = |rng: &mut Self| match mood {
            0 => false,
            1 => true,
            _ => rng.random().is_multiple_of(2),
        };
        let mut names = before.durable_names.clone();
        for change in &before.pending_names {
            if !keeps(&mut after) {
                continue;
            }
            match change {
                NameChange::Set { file, inode } => {
                    names.insert(file.clone(), *inode);
                }
                NameChange::Rename { from, to, inode } => {
                    if names.get(from) == Some(inode) {
                        names.remove(from);
                    }
                    names.insert(to.clone(), *inode);
                }
                NameChange::Unset { file } => {
                    names.remove(file);
                }
            }
        }
        for (file, inode) in names {
            let content = after.content_after_crash(&before.inodes[inode], &mut keeps);
            let number = after.inodes.len();
            after.inodes.push(Inode { shown: content.clone(), durable: content, pending: Vec::new() });
            after.names.insert(file.clone(), number);
            after.durable_names.insert(file, number);
        }
        after
    }

    fn content_after_crash(&mut self, inode: &Inode, keeps: &mut impl FnMut(&mut Self) -> bool) -> Vec<u8> {
        let mut content = inode.durable.clone();
        for change in &inode.pending {
            match change {
                Change::Length(len) => {
                    if keeps(self) {
                        content.resize(usize::try_from(*len).expect("a simulated file fits in memory"), 0);
                    }
                }
                Change::Write { offset, data } => {
                    let start = usize::try_from(*offset).expect("a simulated file fits in memory");
                    let mut at = 0;
                    while at < data.len() {
                        let end = data.len().min(((start + at) / SECTOR_BYTES + 1) * SECTOR_BYTES - start);
                        if keeps(self) {
                            if content.len() < start + end {
                                content.resize(start + end, 0);
                            }
                            content[start + at..start + end].copy_from_slice(&data[at..end]);
                        }
                        at = end;
                    }
                }
            }
        }
        content
    }

    /// Notes the effects of an operation as ones that a crash may keep.
    fn may_happen(&mut self, op: &DeviceOp) {
        match op {
            DeviceOp::Write { file, offset, data } | DeviceOp::WriteSync { file, offset, data } => {
                if let Some(inode) = self.names.get(file) {
                    self.inodes[*inode].pending.push(Change::Write { offset: *offset, data: data.clone() });
                }
            }
            DeviceOp::Allocate { file, len } => {
                if let Some(inode) = self.names.get(file).map(|i| &mut self.inodes[*i])
                    && *len > inode.shown.len() as u64
                {
                    inode.pending.push(Change::Length(*len));
                }
            }
            DeviceOp::Truncate { file, len } => {
                if let Some(inode) = self.names.get(file) {
                    self.inodes[*inode].pending.push(Change::Length(*len));
                }
            }
            DeviceOp::Create { file } => {
                if !self.names.contains_key(file) {
                    self.inodes.push(Inode::default());
                    self.pending_names.push(NameChange::Set { file: file.clone(), inode: self.inodes.len() - 1 });
                }
            }
            DeviceOp::Rename { from, to } => {
                if let Some(inode) = self.names.get(from) {
                    self.pending_names.push(NameChange::Rename { from: from.clone(), to: to.clone(), inode: *inode });
                }
            }
            DeviceOp::Remove { file } => self.pending_names.push(NameChange::Unset { file: file.clone() }),
            DeviceOp::Read { .. } | DeviceOp::Sync { .. } | DeviceOp::SyncDir | DeviceOp::List => {}
        }
    }

    fn perform(&mut self, op: &DeviceOp, fault: Option<Fault>) -> Result<Done, DeviceError> {
        let io = || Err(DeviceError::Io { what: op.describe(), message: "simulated error".to_owned() });
        match fault {
            None => {}
            // The power went off when it was submitted; nothing is performed any more.
            Some(Fault::PowerOff) => return Err(DeviceError::Gone),
            Some(Fault::Io) => {
                if let DeviceOp::Sync { file } | DeviceOp::WriteSync { file, .. } = op
                    && let Some(inode) = self.names.get(file).copied()
                {
                    // What was dirty counts as clean now; some of it may have been written before the error, the rest never is.
                    if self.random().is_multiple_of(2) {
                        self.may_happen(op);
                    }
                    let pending = std::mem::take(&mut self.inodes[inode].pending);
                    let kept = Inode { pending, durable: std::mem::take(&mut self.inodes[inode].durable), shown: Vec::new() };
                    let mut keeps = |rng: &mut Self| rng.random().is_multiple_of(2);
                    self.inodes[inode].durable = self.content_after_crash(&kept, &mut keeps);
                } else if let DeviceOp::SyncDir = op {
                    self.pending_names.clear();
                } else {
                    self.may_happen(op);
                }
                return io();
            }
            Some(Fault::NoSpace) => {
                self.may_happen(op);
                return match op.file() {
                    Some(file) => Err(DeviceError::NoSpace { file: file.clone() }),
                    None => io(),
                };
            }
            Some(Fault::Misdirected(by)) => {
                if let DeviceOp::Write { file, offset, data } | DeviceOp::WriteSync { file, offset, data } = op {
                    self.apply(&DeviceOp::Write { file: file.clone(), offset: offset + by, data: data.clone() })?;
                    return self.apply(&DeviceOp::Sync { file: file.clone() });
                }
            }
            Some(Fault::Zeroed) => {
                if let DeviceOp::Write { file, offset, data } | DeviceOp::WriteSync { file, offset, data } = op {
                    let mut data = data.clone();
                    let zeroed = data.len().min(SECTOR_BYTES);
                    data[..zeroed].fill(0);
                    self.apply(&DeviceOp::Write { file: file.clone(), offset: *offset, data })?;
                    return self.apply(&DeviceOp::Sync { file: file.clone() });
                }
            }
            Some(Fault::Lost) => return Ok(Done::Nothing),
            Some(Fault::BitFlip) => {
                let mut result = self.apply(op)?;
                if let Done::Data(data) = &mut result
                    && !data.is_empty()
                {
                    let (bit, len) = (self.random(), data.len() as u64);
                    data[(bit / 8 % len) as usize] ^= 1 << (bit % 8);
                }
                return Ok(result);
            }
        }
        self.apply(op)
    }

    fn inode(&self, file: &FileName) -> Result<usize, DeviceError> {
        self.names.get(file).copied().ok_or_else(|| DeviceError::NotFound { file: file.clone() })
    }

    fn has_space(&self, file: &FileName, len: u64) -> Result<(), DeviceError> {
        let inode = self.inode(file)?;
        let others: u64 = self.names.values().filter(|i| **i != inode).map(|i| self.inodes[*i].shown.len() as u64).sum();
        if others + len > self.capacity_bytes && len > self.inodes[inode].shown.len() as u64 {
            return Err(DeviceError::NoSpace { file: file.clone() });
        }
        Ok(())
    }

    fn apply(&mut self, op: &DeviceOp) -> Result<Done, DeviceError> {
        match op {
            DeviceOp::Create { file } if self.names.contains_key(file) => return Err(DeviceError::Exists { file: file.clone() }),
            DeviceOp::Create { file } => {
                self.may_happen(op);
                self.names.insert(file.clone(), self.inodes.len() - 1);
            }
            DeviceOp::Write { file, offset, data } | DeviceOp::WriteSync { file, offset, data } => {
                let inode = self.inode(file)?;
                let start = usize::try_from(*offset).expect("a simulated file fits in memory");
                self.has_space(file, offset + data.len() as u64)?;
                self.may_happen(op);
                let shown = &mut self.inodes[inode].shown;
                if shown.len() < start + data.len() {
                    shown.resize(start + data.len(), 0);
                }
                shown[start..start + data.len()].copy_from_slice(data);
                if let DeviceOp::WriteSync { .. } = op {
                    self.sync(inode);
                }
            }
            DeviceOp::Read { file, offset, len } => {
                let shown = &self.inodes[self.inode(file)?].shown;
                let start = usize::try_from(*offset).unwrap_or(usize::MAX).min(shown.len());
                return Ok(Done::Data(shown[start..shown.len().min(start.saturating_add(*len))].to_vec()));
            }
            DeviceOp::Sync { file } => {
                let inode = self.inode(file)?;
                self.sync(inode);
            }
            DeviceOp::SyncDir => {
                self.pending_names.clear();
                self.durable_names = self.names.clone();
            }
            DeviceOp::Allocate { file, len } => {
                let inode = self.inode(file)?;
                self.has_space(file, *len)?;
                self.may_happen(op);
                let len = usize::try_from(*len).expect("a simulated file fits in memory");
                if len > self.inodes[inode].shown.len() {
                    self.inodes[inode].shown.resize(len, 0);
                }
            }
            DeviceOp::Truncate { file, len } => {
                let inode = self.inode(file)?;
                self.may_happen(op);
                self.inodes[inode].shown.resize(usize::try_from(*len).expect("a simulated file fits in memory"), 0);
            }
            DeviceOp::Rename { from, to } => {
                let inode = self.inode(from)?;
                self.may_happen(op);
                self.names.remove(from);
                self.names.insert(to.clone(), inode);
            }
            DeviceOp::Remove { file } => {
                self.inode(file)?;
                self.may_happen(op);
                self.names.remove(file);
            }
            DeviceOp::List => {
                let len = |inode: &usize| self.inodes[*inode].shown.len() as u64;
                return Ok(Done::Files(self.names.iter().map(|(file, inode)| (file.clone(), len(inode))).collect()));
            }
        }
        Ok(Done::Nothing)
    }

    /// Makes durable what the file's changes made of it. After a failed sync that isn't what is shown.
    fn sync(&mut self, inode: usize) {
        let inode = &mut self.inodes[inode];
        for change in std::mem::take(&mut inode.pending) {
            match change {
                Change::Length(len) => inode.durable.resize(usize::try_from(len).expect("a simulated file fits in memory"), 0),
                Change::Write { offset, data } => {
                    let start = usize::try_from(offset).expect("a simulated file fits in memory");
                    if inode.durable.len() < start + data.len() {
                        inode.durable.resize(start + data.len(), 0);
                    }
                    inode.durable[start..start + data.len()].copy_from_slice(&data);
                }
            }
        }
    }
}

impl Device for SimDevice {
    fn submit(&mut self, op: DeviceOp) -> Token {
        let fault = self.faults.get(&self.submitted).copied();
        let token = Token(self.submitted);
        self.submitted += 1;
        self.waiting.push((token, op, fault));
        if fault == Some(Fault::PowerOff) && !self.off {
            self.off = true;
            for (_, op, fault) in self.waiting.clone() {
                if fault != Some(Fault::Lost) {
                    self.may_happen(&op);
                }
            }
        }
        token
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        if self.off {
            done.extend(self.waiting.drain(..).map(|(token, _, _)| Completion { token, result: Err(DeviceError::Gone) }));
            return;
        }
        // Some now, some later, in any order; but something, if anything waits.
        let mut least = 1;
        while !self.waiting.is_empty() && (least > 0 || self.random().is_multiple_of(2)) {
            least = 0;
            let at = (self.random() % self.waiting.len() as u64) as usize;
            let (token, op, fault) = self.waiting.swap_remove(at);
            let result = self.perform(&op, fault);
            done.push(Completion { token, result });
        }
    }

    fn wait(&mut self, _timeout: Duration) {}
}
