//! The page that names a test for each defect of other stores names tests that are there.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

#[test]
fn each_defect_of_other_stores_has_a_test_that_is_there() {
    let storage = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(storage.join("../docs/design/storage-tests.md")).unwrap();
    let mut tests = 0;
    let mut defects = String::new();
    for row in page.lines().filter(|line| line.starts_with("| ") && line.contains(": ")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [defect, _, named] = cells.as_slice() else { panic!("three cells: {row}") };
        defects.push_str(&format!("{defect}, "));
        for test in named.split(", ") {
            let (file, function) =
                test.trim_matches('`').split_once(": ").unwrap_or_else(|| panic!("file: function, not {test}"));
            let path = if file.starts_with("src/") { storage.join(file) } else { storage.join("tests").join(file) };
            let source = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(source.contains(&format!("fn {function}(")), "{file} has no test {function}");
            tests += 1;
        }
    }
    for row in 1..=14 {
        assert!(defects.contains(&format!("R{row}, ")), "R{row} has no test");
    }
    assert!(tests > 35, "{tests}");
}
