//! Policies as operators write them, and get them wrong.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// The example by which the language is specified, letter by letter.
const EXAMPLE: &str = include_str!("example.yaml");

fn complaints(text: &str) -> Vec<String> {
    Policy::parse("policy.yaml", text).unwrap_err().issues.iter().map(ToString::to_string).collect()
}

#[test]
fn the_whole_example_is_a_valid_policy() {
    let policy = Policy::parse("example.yaml", EXAMPLE).unwrap_or_else(|errors| panic!("{errors}"));
    for issue in policy.unsupported() {
        println!("{issue}");
    }
}
