//! Compiles the built-in catalogue, so that it lies in the program's read-only pages and is used where it lies.

use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "src/classify/catalogue/builder.rs"]
mod builder;
#[path = "src/classify/catalogue/layout.rs"]
#[allow(dead_code, reason = "the agent reads what is only written here")]
mod layout;
#[path = "src/classify/catalogue/list.rs"]
mod list;
#[path = "src/classify/name.rs"]
#[allow(dead_code, unreachable_pub, reason = "a part of the agent that is not needed whole here")]
mod name;

/// A later file replaces what an earlier one says.
const FILES: [&str; 2] = ["catalogue/domains.txt", "catalogue/overlay.txt"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/classify/catalogue");
    println!("cargo::rerun-if-changed=src/classify/name.rs");
    let mut builder = builder::Builder::new();
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
        let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("read {file}: {error}"));
        builder.next_file();
        // Which words are classes the agent knows; it refuses others when it reads the result, and a test does.
        if let Err(mistake) = list::read(&text, &mut builder, |class| !class.is_empty()) {
            panic!("{file}:{}:{}: {}", mistake.line, mistake.column, mistake.message);
        }
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names the directory"));
    write(&out.join("catalogue"), &builder.finish());
}

fn write(file: &Path, bytes: &[u8]) {
    fs::write(file, bytes).unwrap_or_else(|error| panic!("write {}: {error}", file.display()));
}
