//! Luck that can be repeated: numbers from keyed hashes, the same for the same names wherever and whenever they are drawn.

/// A number in [0, 1) for what `parts` name, different for each `purpose` and `salt`.
#[expect(clippy::cast_precision_loss, reason = "53 bits are what a double keeps")]
pub(super) fn draw(purpose: &str, salt: &str, parts: &[&[u8]]) -> f64 {
    let mut hasher = blake3::Hasher::new();
    for part in [purpose.as_bytes(), salt.as_bytes()].into_iter().chain(parts.iter().copied()) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    (u64::from_le_bytes(first) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_even_and_independent_of_each_other() {
        let of = |purpose: &str, salt: &str| -> Vec<f64> {
            (0_u32..10_000).map(|who| draw(purpose, salt, &[&who.to_le_bytes()])).collect()
        };
        let (first, other, salted) = (of("holdout", "s"), of("canary", "s"), of("holdout", "t"));
        for draws in [&first, &other, &salted] {
            for tenth in 0..10 {
                let from = f64::from(tenth) / 10.0;
                let inside = draws.iter().filter(|draw| (from..from + 0.1).contains(*draw)).count();
                assert!((900..1_100).contains(&inside), "{inside} of 10,000 in a tenth");
            }
        }
        // Who is held out is no likelier than others to be a canary.
        let both = |other: &[f64]| first.iter().zip(other).filter(|(a, b)| **a < 0.1 && **b < 0.1).count();
        assert!((60..140).contains(&both(&other)) && (60..140).contains(&both(&salted)));
        let apart = (draw("a", "bc", &[]) - draw("ab", "c", &[])).abs();
        assert!(apart > 1e-9, "names do not run into each other");
    }
}
