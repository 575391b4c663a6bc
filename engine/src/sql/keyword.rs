//! Words that are ours, and which of them a misspelled one may mean.

use sqlparser::tokenizer::Token;

/// Whether `token` is that word, unquoted, in any case.
pub(super) fn is_word(token: &Token, word: &str) -> bool {
    matches!(token, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word))
}

/// The one of `choices` that `word` probably means: at most two edits away (one for words up to four letters), compared without case.
#[must_use]
pub fn closest<'c>(word: &str, choices: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let word = word.to_lowercase();
    let edits_max = if word.chars().count() <= 4 { 1 } else { 2 };
    choices
        .into_iter()
        // Among equals the one of the same length: letters are swapped more often than left out.
        .map(|choice| (edits(&word, &choice.to_lowercase()), choice.len().abs_diff(word.len()), choice))
        .filter(|(edits, ..)| *edits <= edits_max)
        .min()
        .map(|(.., choice)| choice)
}

/// The optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, first) in rows[0].iter_mut().enumerate() {
        *first = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let substituted = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = substituted.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_word_finds_its_neighbour() {
        assert_eq!(closest("SLECT", ["INSERT", "SELECT", "SET"]), Some("SELECT"));
        assert_eq!(closest("CREAET", ["CREATE"]), Some("CREATE"));
        assert_eq!(closest("FOO", ["SET", "DROP"]), None);
    }
}
