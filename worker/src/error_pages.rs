//! The pages of `docs/errors/`, carried in the binary, so that they are at hand where the error is.

use tiderace_engine::error::Code;

include!(concat!(env!("OUT_DIR"), "/error_pages.rs"));

/// The page of `TR-1001`, `tr-1001` or `1001`.
#[must_use]
pub fn page(code: &str) -> Option<&'static str> {
    let digits = code.trim().trim_start_matches(['T', 't']).trim_start_matches(['R', 'r']).trim_start_matches('-');
    let number: u16 = digits.parse().ok()?;
    PAGES.iter().find(|(n, _)| *n == number).map(|(_, text)| *text)
}

/// What is wrong between the table of codes and the pages: a code without a page, a page without a code, a title that differs.
#[must_use]
pub fn mismatches() -> Vec<String> {
    let mut wrong = Vec::new();
    for code in Code::ALL {
        let title = format!("# {code}: {}", code.title());
        match PAGES.iter().find(|(number, _)| *number == *code as u16) {
            None => wrong.push(format!("docs/errors/{code}.md is missing; it begins with '{title}'")),
            Some((_, text)) if text.lines().next() != Some(&title) => {
                wrong.push(format!("docs/errors/{code}.md must begin with '{title}'"))
            }
            Some(_) => {}
        }
    }
    let known = |number: u16| Code::ALL.iter().any(|code| *code as u16 == number);
    wrong.extend(
        PAGES.iter().filter(|(n, _)| !known(*n)).map(|(n, _)| format!("docs/errors/TR-{n:04}.md is the page of no code")),
    );
    wrong
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn every_code_has_its_page_and_every_page_its_code() {
        let wrong = mismatches();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn every_page_says_what_it_means_shows_an_example_and_what_to_do() {
        for (number, text) in PAGES {
            for part in ["## Example", "## What to do"] {
                assert!(text.contains(part), "docs/errors/TR-{number:04}.md lacks '{part}'");
            }
        }
    }

    #[test]
    fn a_page_is_found_by_any_spelling_of_its_code() {
        let text = page("TR-1001").unwrap();
        assert_eq!(page("tr-1001"), Some(text));
        assert_eq!(page("1001"), Some(text));
        assert_eq!(page("TR-1"), None);
        assert_eq!(page("x"), None);
    }
}
