//! The identifiers of the engine's domain: small, `Copy`, made on purpose (no `From<u64>`), so that an epoch can't be passed for a core.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A tick of the job: all rows between two marks. Counts from 1; 0 is "before the first mark".
    Epoch(u64)
);
id!(
    /// A virtual partition of the key space: the top bits of a key's hash. Below `maxParallelism`.
    VnodeId(u16)
);
id!(
    /// A Ring 0 thread of this job, numbered from 0 over the whole job.
    CoreId(u16)
);
id!(
    /// A node of the dataflow graph; the same number on every core. Also an index into the graph's nodes.
    NodeId(u32)
);
id!(
    /// A part of a source that is read in order: a file, a row group, a Kafka partition, a generator slice. Unique inside its source.
    SplitId(u32)
);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
