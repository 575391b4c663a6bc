//! From field names in records to columns, with a guess that is nearly always right: the name that followed last time.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

/// What a field of a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// This column of the schema.
    Column(usize),
    /// A column of the table that the plan does not need.
    Unneeded,
    /// No column of the table.
    Extra,
}

struct Entry {
    name: Box<str>,
    target: Target,
    /// The entry that came after this one last time.
    next: u32,
}

/// Looks names up: exactly, else without case.
pub struct NameTable {
    /// Entry 0 stands for the start of a record. Bounded by [`NameTable::NAMES_MAX`].
    entries: Vec<Entry>,
    by_name: HashMap<Box<str>, u32, FixedState>,
    /// All names of the table, with their column if it is built.
    declared: Vec<(String, Option<usize>)>,
}

/// Where a record is: the entry of its last field.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place(u32);

impl NameTable {
    /// More different names than these are looked up the slow way, so that data can't fill memory with names.
    const NAMES_MAX: usize = 4096;

    /// For the columns `built`, in order, of a table with the columns `declared`.
    pub fn new<'a>(built: impl Iterator<Item = &'a str>, declared: impl Iterator<Item = &'a str>) -> Self {
        let built: Vec<&str> = built.collect();
        let mut all: Vec<(String, Option<usize>)> = built.iter().enumerate().map(|(i, n)| ((*n).to_owned(), Some(i))).collect();
        all.extend(declared.filter(|n| !built.contains(n)).map(|n| (n.to_owned(), None)));
        let start = Entry { name: "".into(), target: Target::Extra, next: 0 };
        Self { entries: vec![start], by_name: HashMap::with_hasher(FixedState::default()), declared: all }
    }

    /// All names of the table.
    pub fn all(&self) -> Vec<&str> {
        self.declared.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// How the table writes the name that `name` is found by; `name` itself when the table has no such column.
    pub fn declared<'a>(&'a self, name: &'a str) -> &'a str {
        if self.declared.iter().any(|(n, _)| n == name) {
            return name;
        }
        let folded = name.to_lowercase();
        self.declared.iter().find(|(n, _)| n.to_lowercase() == folded).map_or(name, |(n, _)| n)
    }

    /// What `name` is, where it follows `place`.
    pub fn find(&mut self, place: &mut Place, name: &str) -> Target {
        let next = self.entries[place.0 as usize].next;
        if next != 0 {
            let guess = &self.entries[next as usize];
            if *guess.name == *name {
                *place = Place(next);
                return guess.target;
            }
        }
        let index = match self.by_name.get(name) {
            Some(index) => *index,
            None => {
                let target = self.resolve(name);
                if self.entries.len() >= Self::NAMES_MAX {
                    return target;
                }
                let index = self.entries.len() as u32;
                self.entries.push(Entry { name: name.into(), target, next: 0 });
                self.by_name.insert(name.into(), index);
                index
            }
        };
        self.entries[place.0 as usize].next = index;
        *place = Place(index);
        self.entries[index as usize].target
    }

    fn resolve(&self, name: &str) -> Target {
        let target = |column: &Option<usize>| column.map_or(Target::Unneeded, Target::Column);
        if let Some((_, column)) = self.declared.iter().find(|(n, _)| n == name) {
            return target(column);
        }
        let folded = name.to_lowercase();
        self.declared.iter().find(|(n, _)| n.to_lowercase() == folded).map_or(Target::Extra, |(_, column)| target(column))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_exactly_first_then_without_case() {
        let mut table = NameTable::new(["id", "Price"].into_iter(), ["id", "price", "Price", "unused"].into_iter());
        for _ in 0..2 {
            let mut place = Place::default();
            assert_eq!(table.find(&mut place, "Price"), Target::Column(1));
            assert_eq!(table.find(&mut place, "price"), Target::Unneeded);
            assert_eq!(table.find(&mut place, "ID"), Target::Column(0));
            assert_eq!(table.find(&mut place, "UNUSED"), Target::Unneeded);
            assert_eq!(table.find(&mut place, ""), Target::Extra);
        }
    }

    #[test]
    fn the_number_of_remembered_names_is_bounded() {
        let mut table = NameTable::new(["id"].into_iter(), ["id"].into_iter());
        let mut place = Place::default();
        for i in 0..3 * NameTable::NAMES_MAX {
            assert_eq!(table.find(&mut place, &format!("x{i}")), Target::Extra);
        }
        assert_eq!(table.find(&mut place, "id"), Target::Column(0));
        assert!(table.entries.len() <= NameTable::NAMES_MAX);
    }
}
