//! The sessions of a checkpoint, in its note.
//!
//! Little endian: `TRKVSESS` (8 bytes), version 1 (4), value bytes (4), next session (8), number of sessions (4), then for each, by its
//! number: session (8), last serial in the checkpoint (8).

const MAGIC: [u8; 8] = *b"TRKVSESS";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 28;
const SESSION_BYTES: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionTable {
    pub(crate) value_bytes: u32,
    pub(crate) next_session: u64,
    /// Session and serial, ascending.
    pub(crate) serials: Vec<(u64, u64)>,
}

impl SessionTable {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.value_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.next_session.to_le_bytes());
        bytes.extend_from_slice(&(self.serials.len() as u32).to_le_bytes());
        for (session, serial) in &self.serials {
            bytes.extend_from_slice(&session.to_le_bytes());
            bytes.extend_from_slice(&serial.to_le_bytes());
        }
        bytes
    }

    /// The table, or what is wrong with it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Err("it is too short".to_owned()) };
        let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if header[..8] != MAGIC || number(8) != VERSION {
            return Err("it doesn't begin as one of this version".to_owned());
        }
        if !rest.len().is_multiple_of(SESSION_BYTES) || rest.len() / SESSION_BYTES != number(24) as usize {
            return Err("its length is not that of its sessions".to_owned());
        }
        let wide = |b: &[u8]| b.iter().rev().fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
        let serials: Vec<_> = rest.chunks_exact(SESSION_BYTES).map(|s| (wide(&s[..8]), wide(&s[8..]))).collect();
        let table = Self { value_bytes: number(12), next_session: wide(&header[16..24]), serials };
        if !table.serials.windows(2).all(|pair| pair[0].0 < pair[1].0) {
            return Err("a session stands there twice, or out of order".to_owned());
        }
        match table.serials.last() {
            Some((session, _)) if *session >= table.next_session => Err(format!("session {session} was never given out")),
            _ => Ok(table),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn anything_decodes_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..120), known in any::<bool>()) {
            if known && bytes.len() >= 12 {
                bytes[..12].copy_from_slice(b"TRKVSESS\x01\0\0\0");
            }
            let _ = SessionTable::decode(&bytes);
        }

        #[test]
        fn tables_come_back(value_bytes in any::<u32>(), serials in prop::collection::btree_map(0_u64..1 << 40, any::<u64>(), 0..9)) {
            let table = SessionTable { value_bytes, next_session: 1 << 40, serials: serials.into_iter().collect() };
            let bytes = table.encode();
            prop_assert_eq!(SessionTable::decode(&bytes).unwrap(), table);
            prop_assert!(SessionTable::decode(&bytes[..bytes.len() - 1]).is_err());
        }
    }

    #[test]
    fn sessions_that_stand_twice_or_were_never_given_out_are_refused() {
        let table = |serials: &[(u64, u64)]| SessionTable { value_bytes: 8, next_session: 4, serials: serials.to_vec() }.encode();
        assert!(SessionTable::decode(&table(&[(1, 5), (3, 6)])).is_ok());
        for wrong in [&[(1, 5), (1, 6)][..], &[(2, 5), (1, 6)], &[(4, 1)]] {
            assert!(SessionTable::decode(&table(wrong)).is_err(), "{wrong:?}");
        }
    }
}
