//! Puts the pages of `docs/errors/` into a table for `tiderace error`.

use std::path::Path;
use std::{env, fs};

fn main() {
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../docs/errors");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut pages: Vec<(u16, String)> = fs::read_dir(&folder)
        .expect("docs/errors is part of the checkout")
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number = path.file_name()?.to_str()?.strip_prefix("TR-")?.strip_suffix(".md")?.parse().ok()?;
            println!("cargo::rerun-if-changed={}", path.display());
            Some((number, fs::read_to_string(&path).expect("a page is UTF-8 text")))
        })
        .collect();
    pages.sort();
    let rows: String = pages.iter().map(|(number, text)| format!("    ({number}, {text:?}),\n")).collect();
    let table = format!("/// Number of the code and text of the page, ascending.\nconst PAGES: &[(u16, &str)] = &[\n{rows}];\n");
    let out = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("error_pages.rs");
    fs::write(out, table).expect("cargo's output folder is writable");
}
