//! Values of `SECRET 'name'`: given to connectors, shown to nobody.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// What stands for the value of a secret whose value is not known while a job is only checked.
const UNKNOWN: &str = "unknown-secret";

/// The secrets that a job may use, by name. Neither `Debug` nor any message shows a value.
#[derive(Clone, Default)]
pub struct Secrets {
    values: Arc<BTreeMap<String, String>>,
    /// Texts that must not be shown and what is shown in their place; the longest first, so that none is cut by a part of it.
    hidden: Arc<Vec<(String, String)>>,
}

impl Secrets {
    /// Secrets with their values.
    #[must_use]
    pub fn new(values: BTreeMap<String, String>) -> Self {
        let mut hidden = Vec::new();
        for (name, value) in values.iter().filter(|(_, value)| !value.is_empty()) {
            let quoted = format!("{value:?}");
            let escaped = quoted[1..quoted.len() - 1].to_owned();
            if escaped != *value {
                hidden.push((escaped, shown(name)));
            }
            hidden.push((value.clone(), shown(name)));
        }
        hidden.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        Self { values: Arc::new(values), hidden: Arc::new(hidden) }
    }

    /// Secrets of which only the names are known, to check a job that is not run.
    #[must_use]
    pub fn named(names: impl IntoIterator<Item = String>) -> Self {
        Self { values: Arc::new(names.into_iter().map(|name| (name, UNKNOWN.to_owned())).collect()), hidden: Arc::default() }
    }

    /// The value of `name`.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// `text` with `SECRET 'name'` wherever a value stood. A last defence for messages of foreign libraries: what we write ourselves never
    /// holds a value.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (hidden, shown) in self.hidden.iter() {
            if out.contains(hidden.as_str()) {
                out = out.replace(hidden.as_str(), shown);
            }
        }
        out
    }

    /// [`Self::redact`] on message and hint.
    #[must_use]
    pub fn redact_diagnostic(&self, mut problem: crate::error::Diagnostic) -> crate::error::Diagnostic {
        if !self.hidden.is_empty() {
            problem.message = self.redact(&problem.message);
            problem.hint = problem.hint.map(|hint| self.redact(&hint));
        }
        problem
    }
}

/// How a secret is written in SQL, and shown everywhere.
pub(crate) fn shown(name: &str) -> String {
    format!("SECRET '{}'", name.replace('\'', "''"))
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(values: &[(&str, &str)]) -> Secrets {
        Secrets::new(values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn no_text_shows_a_value() {
        let all = secrets(&[("short", "ab"), ("long", "xxabyy"), ("odd", "a\"\n"), ("empty", "")]);
        assert_eq!(all.redact("login xxabyy, ab"), "login SECRET 'long', SECRET 'short'");
        assert_eq!(all.redact(&format!("{:?}", "a\"\n")), "\"SECRET 'odd'\"");
        assert_eq!(all.redact("nothing"), "nothing");
        assert!(!format!("{all:?}").contains("xxabyy"));
    }

    #[test]
    fn a_secret_of_which_only_the_name_is_known_hides_nothing() {
        let named = Secrets::named(["a".to_owned()]);
        assert!(named.value("a").is_some() && named.value("b").is_none());
        assert_eq!(named.redact("unknown-secret"), "unknown-secret");
    }
}
