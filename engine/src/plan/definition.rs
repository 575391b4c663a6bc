//! What a job computes, as text that is the same as long as its results are: what a checkpoint is compared with.

use std::collections::BTreeMap;

use sqlparser::tokenizer::{Token, Tokenizer};

use crate::sql::TideraceDialect;

/// Settings that say how a job runs and not what comes out.
const OF_RUNNING: &[&str] = &["engine.mode", "engine.tick", "engine.memory", "state.", "checkpoint."];

/// The statements without comments, white space and settings of how the job runs, with the values of variables and all other settings.
#[must_use]
pub fn definition(sql: &str, variables: &BTreeMap<String, String>, config: &BTreeMap<String, String>) -> String {
    let config: BTreeMap<_, _> = config.iter().filter(|(key, _)| !is_of_running(key)).collect();
    format!("{}\n{variables:?}\n{config:?}", statements(sql))
}

fn is_of_running(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    OF_RUNNING.iter().any(|of| key == *of || of.ends_with('.') && key.starts_with(of))
}

fn statements(sql: &str) -> String {
    // What can't be cut into tokens isn't planned either.
    let Ok(tokens) = Tokenizer::new(&TideraceDialect, sql).with_unescape(false).tokenize() else { return sql.to_owned() };
    let tokens: Vec<_> = tokens.into_iter().filter(|token| !matches!(token, Token::Whitespace(_) | Token::EOF)).collect();
    let mut text = String::new();
    for statement in tokens.split(|token| *token == Token::SemiColon) {
        if statement.is_empty() || sets(statement).is_some_and(|key| is_of_running(&key)) {
            continue;
        }
        for token in statement {
            text.push_str(&token.to_string());
            text.push(' ');
        }
        text.push_str(";\n");
    }
    text
}

/// The key that a statement sets.
fn sets(statement: &[Token]) -> Option<String> {
    let (Token::Word(first), rest) = statement.split_first()? else { return None };
    if !first.value.eq_ignore_ascii_case("SET") {
        return None;
    }
    let key = rest.iter().take_while(|token| **token != Token::Eq);
    Some(key.map(ToString::to_string).collect::<String>().replace(['\'', '"', '`'], ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sql: &str) -> String {
        definition(sql, &BTreeMap::new(), &BTreeMap::new())
    }

    #[test]
    fn how_it_is_written_and_how_it_runs_make_no_other_job() {
        let one = of("SET 'checkpoint.interval' = '1 s'; INSERT INTO o SELECT a FROM t WHERE b = 'x -- y'");
        let same = "-- changed\nset 'checkpoint.interval'='2 s';\n SET engine.tick = '5 ms'; INSERT  INTO o\n SELECT a /* b */ FROM t WHERE b='x -- y';";
        assert_eq!(one, of(same));
        for other in ["x  -- y", "X -- y"] {
            assert_ne!(one, of(&format!("INSERT INTO o SELECT a FROM t WHERE b = '{other}'")));
        }
        assert_ne!(of("SELECT 1"), of("SET 'on_error' = 'skip'; SELECT 1"));
        assert_ne!(of("SELECT 1"), of("SELECT '1'"));
        let config = |key: &str| definition("SELECT 1", &BTreeMap::new(), &BTreeMap::from([(key.to_owned(), "1".to_owned())]));
        assert_eq!(config("engine.memory"), of("SELECT 1"));
        assert_ne!(config("on_error"), of("SELECT 1"));
    }
}
