//! Another catalogue while flows are under way: what was told stays, what is told from then on goes by the new one, and no
//! sample is lost.

use super::*;

fn catalogue(app: &str, class: &str) -> Catalogue {
    let mut catalogue = Catalogue::built_in();
    let rule = format!("rules: [{{domain: films.test, app: {app}, class: {class}}}]");
    catalogue.extend("own.yaml", &rule).unwrap();
    catalogue
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Flows of two samples each, in any order, and reloads anywhere between them.
    #[test]
    fn every_flow_is_named_once_by_the_catalogue_of_its_last_sample(
        order in Just((0_u16..40).chain(0..40).collect::<Vec<_>>()).prop_shuffle(),
        reloads in proptest::collection::btree_set(0_usize..80, 0..10),
    ) {
        let catalogues = [catalogue("old", "video"), catalogue("new", "bulk")];
        let mut classifier = Classifier::new(catalogues[0].clone());
        let hello = client_hello("www.films.test", false);
        let (first, second) = hello.split_at(40);
        let mut present = 0;
        let mut sent = [0; 40];
        let mut told = [None; 40];
        for (turn, number) in order.into_iter().enumerate() {
            if reloads.contains(&turn) {
                present = 1 - present;
                classifier.replace_catalogue(catalogues[present].clone());
            }
            let segment = if sent[usize::from(number)] == 0 {
                Segment::up(100, first)
            } else {
                Segment::up(100 + u32::try_from(first.len()).unwrap(), second)
            };
            sent[usize::from(number)] += 1;
            let flow = key(packet::TCP, SERVER, 10_000 + number, 443);
            match classifier.observe(&segment.sample_of(flow, at(0))) {
                Observation::Named(verdict) => {
                    prop_assert_eq!(sent[usize::from(number)], 2);
                    let expected = [("old", Class::Video), ("new", Class::Bulk)][present];
                    prop_assert_eq!((verdict.app.as_deref(), verdict.class), (Some(expected.0), expected.1));
                    told[usize::from(number)] = Some((flow, verdict.class));
                }
                other => prop_assert!(sent[usize::from(number)] == 1, "{other:?}"),
            }
        }
        classifier.replace_catalogue(Catalogue::empty());
        for told in told {
            let Some((flow, class)) = told else { panic!("a flow without a verdict") };
            let later = Segment::up(9_000, b"more").sample_of(flow, at(1));
            prop_assert_eq!(classifier.observe(&later), Observation::Again { class, sampling: false });
        }
    }
}
