//! Some tables of another shard's checkpoint of pages, without that shard: what moves when vnodes do.

use hashbrown::HashMap;

use super::checkpoint::load;
use super::manifest::{TableKind, TablePages};
use super::{Recovered, Shard, TableId};
use crate::checkpoint::CheckpointError;
use crate::device::{Device, DeviceOp, Done};
use crate::point::{PageImage, PageRecord, read_page};
use crate::store::{FrameLabel, open_frame, segment_name};

impl Shard {
    /// Puts tables of a checkpoint of shard `number`'s pages, which lie on `device`, into this shard, which has none of them: those that
    /// `wants` accepts. Reads the manifest and the pages of these tables, and nothing else; changes nothing there. What the checkpoint is, and
    /// how many records were put. After an error this shard must be dropped.
    ///
    /// An owner that gives each vnode its own tables moves a vnode this way without reading the others.
    pub fn restore_tables(
        &mut self,
        device: &mut dyn Device,
        number: u32,
        version: u64,
        wants: impl Fn(TableId) -> bool,
    ) -> Result<(Recovered, u64), CheckpointError> {
        let manifest = load(device, version, number)?;
        let mut records = 0;
        for table in manifest.tables.iter().filter(|table| wants(table.id)) {
            match table.kind {
                TableKind::Point => records += self.restore_point(device, number, table)?,
                TableKind::Ordered => {
                    for page in &table.pages {
                        let bytes = read(device, number, table.id, page)?;
                        let before = self.ordered(table.id).len();
                        let put = self.ordered(table.id).put_encoded(&bytes);
                        put.ok_or_else(|| damaged(page, "it holds no entries as they should be"))?;
                        records += (self.ordered(table.id).len() - before) as u64;
                        self.maintain()?;
                    }
                }
            }
        }
        Ok((Recovered { version, note: manifest.note }, records))
    }

    fn restore_point(&mut self, device: &mut dyn Device, number: u32, of: &TablePages) -> Result<u64, CheckpointError> {
        // On which page each key that lives was found: removals count for older pages alone.
        let mut found_on: HashMap<Box<[u8]>, (u64, u64)> = HashMap::new();
        self.point(of.id, of.value_width as usize);
        for page in &of.pages {
            let bytes = read(device, number, of.id, page)?;
            let table = self.point(of.id, of.value_width as usize);
            let read = read_page(&bytes, |record| match record {
                PageRecord::Live { hash, key, value } => {
                    table.put(hash, key, value);
                    found_on.insert(key.into(), (page.number, hash));
                }
                PageRecord::Removed { key, below } => {
                    if let Some((on, hash)) = found_on.get(key).copied()
                        && on < below
                    {
                        table.remove(hash, key);
                        found_on.remove(key);
                    }
                }
            });
            read.ok_or_else(|| damaged(page, "it holds no records as they should be"))?;
            // A shard with a device keeps its budget meanwhile.
            self.maintain()?;
        }
        Ok(found_on.len() as u64)
    }
}

fn damaged(page: &PageImage, because: &str) -> CheckpointError {
    let because = format!("the page at {}: {because}", page.place.offset());
    CheckpointError::Damaged { file: segment_name(page.place.segment), because }
}

fn read(device: &mut dyn Device, shard: u32, table: TableId, page: &PageImage) -> Result<Vec<u8>, CheckpointError> {
    let file = segment_name(page.place.segment);
    let op = DeviceOp::Read { file, offset: page.place.offset(), len: page.place.bytes() };
    let Done::Data(bytes) = device.execute(op)? else { return Err(damaged(page, "it can't be read")) };
    open_frame(bytes, &FrameLabel { shard, table, page: page.number }, &page.place).map_err(|because| damaged(page, &because))
}
