//! Verdicts that give way to stronger proofs, and classes that packets change.

use super::*;

const PEER: [u8; 4] = [198, 51, 100, 7];

fn with_prefix() -> Classifier {
    let mut catalogue = Catalogue::built_in();
    catalogue.extend("own.yaml", "prefixes: [{prefix: 192.0.2.0/24, app: mine, class: bulk}]").unwrap();
    Classifier::new(catalogue)
}

fn verdict(observation: &Observation) -> (bool, Option<&str>, Class, Via) {
    match observation {
        Observation::Named(verdict) => (false, verdict.app.as_deref(), verdict.class, verdict.via),
        Observation::Upgraded(verdict) => (true, verdict.app.as_deref(), verdict.class, verdict.via),
        other => panic!("{other:?}"),
    }
}

/// What the next second tells of a flow.
fn next_second(classifier: &mut Classifier, flow: FlowKey) -> Option<Observation> {
    let concluded = classifier.expire(at(2_000));
    concluded.into_iter().find(|concluded| concluded.flow == flow).map(|concluded| concluded.observation)
}

#[test]
fn a_hello_that_comes_late_is_stronger_than_a_prefix() {
    let mut classifier = with_prefix();
    let middle = Segment::up(100, b"\x01\x02 the middle of something");
    for number in 0..4 {
        let segment = Segment { sequence: 100 + number * 50, ..middle.clone() };
        assert_eq!(classifier.observe(&segment.sample(at(0))), Observation::NeedMore);
    }
    let first = classifier.observe(&Segment { sequence: 400, ..middle.clone() }.sample(at(0)));
    assert_eq!(verdict(&first), (false, Some("mine"), Class::Bulk, Via::Prefix));
    assert_eq!(first.instruction(), Some((Class::Bulk, true)));
    let between = classifier.observe(&Segment { sequence: 500, ..middle }.sample(at(1)));
    assert_eq!(between, Observation::Again { class: Class::Bulk, sampling: true });
    let hello = client_hello("seg.streams.example", true);
    let half = classifier.observe(&Segment::up(600, &hello[..50]).sample(at(2)));
    assert_eq!(half, Observation::Again { class: Class::Bulk, sampling: true });
    let whole = classifier.observe(&Segment::up(650, &hello[50..]).sample(at(3)));
    assert_eq!(verdict(&whole), (true, Some("streams"), Class::Video, Via::Sni));
    assert_eq!(whole.instruction(), Some((Class::Video, false)));
    let after = classifier.observe(&Segment::up(9_000, &client_hello("pages.example", false)).sample(at(4)));
    assert_eq!(after, Observation::Again { class: Class::Video, sampling: false }, "nothing is stronger");
    assert_eq!(classifier.held()[..2], [("streams", 0), ("stream_bytes", 0)]);
}

#[test]
fn a_dns_answer_after_the_flow_began_is_told_at_the_next_second() {
    for mut classifier in [classifier(), with_prefix()] {
        let flow = key(17, SERVER, 6_000, 443);
        let first = classifier.observe(&udp(flow, 7, Direction::Up, at(0), b"opaque"));
        assert!(!matches!(first, Observation::NeedMore | Observation::Upgraded(_)), "{first:?}");
        let (_, answered) = resolve(&mut classifier, 8, "seg.streams.example", 60);
        assert!(matches!(answered, Observation::Again { .. }));
        assert_eq!(next_second(&mut classifier, flow), None, "another subscriber's answer");
        classifier.told.remove(&key(17, RESOLVER, 5_000, 53));
        resolve(&mut classifier, 7, "seg.streams.example", 60);
        let upgraded = next_second(&mut classifier, flow).unwrap();
        assert_eq!(verdict(&upgraded), (true, Some("streams"), Class::Video, Via::Dns));
        assert_eq!(next_second(&mut classifier, flow), None, "told once");
    }
}

#[test]
fn an_answer_that_nobody_asked_for_takes_no_clue_from_those_who_wait() {
    let mut classifier = classifier();
    let flow = key(17, SERVER, 6_000, 443);
    classifier.observe(&udp(flow, 7, Direction::Up, at(0), b"opaque"));
    let forged = answer("pages.example", &[SERVER], 60);
    classifier.observe(&udp(key(17, PEER, 5_000, 53), 7, Direction::Down, at(0), &forged));
    assert_eq!(next_second(&mut classifier, flow), None);
    resolve(&mut classifier, 7, "seg.streams.example", 60);
    let upgraded = next_second(&mut classifier, flow).unwrap();
    assert_eq!(verdict(&upgraded), (true, Some("streams"), Class::Video, Via::Dns));
}

#[test]
fn a_calls_app_learnt_at_a_relay_is_that_of_the_flow_to_the_other_party_before() {
    let mut classifier = classifier();
    let peer = key(17, PEER, 51_518, 9_344);
    let first = classifier.observe(&udp(peer, 7, Direction::Up, at(0), &protocols::stun(8)));
    assert_eq!(verdict(&first), (false, Some("stun"), Class::Call, Via::Signature));
    let relay = key(17, SERVER, 51_518, 3_478);
    classifier.observe(&udp(relay, 7, Direction::Up, at(10), &protocols::stun(0x4000)));
    let upgraded = next_second(&mut classifier, peer).unwrap();
    assert_eq!(verdict(&upgraded), (true, Some("whatsapp"), Class::Call, Via::Signature));
}

#[test]
fn an_attribute_in_a_later_request_gives_the_app_away() {
    let mut classifier = classifier();
    let flow = key(17, PEER, 51_518, 9_344);
    let first = classifier.observe(&udp(flow, 7, Direction::Up, at(0), &protocols::stun(8)));
    assert_eq!(first.instruction(), Some((Class::Call, true)));
    let second = classifier.observe(&udp(flow, 7, Direction::Down, at(10), &protocols::stun(8)));
    assert_eq!(second, Observation::Again { class: Class::Call, sampling: true });
    let third = classifier.observe(&udp(flow, 7, Direction::Down, at(20), &protocols::stun(0x4000)));
    assert_eq!(verdict(&third), (true, Some("whatsapp"), Class::Call, Via::Signature));
}

#[test]
fn media_is_heard_in_a_flow_that_addresses_alone_named() {
    let mut classifier = with_prefix();
    let flow = key(17, SERVER, 51_518, 9_344);
    let rtp = |number: u8| [&[0x80, 111, 0, number, 0, 0, number, 0, 1, 2, 3, 4][..], &[9; 80]].concat();
    let observed: Vec<Observation> = (1..=4)
        .map(|number| {
            classifier.observe(&udp(flow, 7, Direction::Up, at(i64::from(number) * 20), &rtp(number)))
        })
        .collect();
    assert_eq!(verdict(&observed[0]), (false, Some("mine"), Class::Bulk, Via::Prefix));
    assert_eq!(verdict(&observed[3]), (true, Some("mine"), Class::Call, Via::Signature));
}

/// Packets of a flow that was named by `name` over TLS, every so many milliseconds each way, as a probe hands them out.
fn live(name: &str, ways: [(i64, usize); 2]) -> (Vec<Observation>, usize) {
    let mut classifier = classifier();
    let mut told = vec![classifier.observe(&Segment::up(100, &client_hello(name, false)).sample(at(0)))];
    let (mut sampling, mut samples) = (false, 1);
    for now in 0..12_000_i64 {
        if now % 1_000 == 500 {
            for concluded in classifier.expire(at(now)) {
                sampling = concluded.observation.instruction().is_some_and(|(_, sampling)| sampling);
            }
        }
        for (direction, (every, bytes)) in [Direction::Up, Direction::Down].into_iter().zip(ways) {
            if every == 0 || now % every != 0 || !sampling {
                continue;
            }
            let sequence = 5_000 + u32::try_from(usize::try_from(now / every).unwrap() * bytes).unwrap();
            let segment = Segment { direction, ..Segment::up(sequence, &vec![0; bytes]) };
            let observation = classifier.observe(&segment.sample(at(now)));
            samples += 1;
            sampling = observation.instruction().is_some_and(|(_, sampling)| sampling);
            if !matches!(observation, Observation::Again { .. }) {
                told.push(observation);
            }
        }
    }
    assert_eq!(classifier.held()[4], ("watched", 0), "a flow is not watched for ever");
    (told, samples)
}

#[test]
fn a_call_a_file_and_a_stream_are_told_apart_by_their_packets() {
    for (name, ways, class) in [
        ("web.whatsapp.com", [(20, 120), (20, 110)], Some(Class::Call)),
        ("web.whatsapp.com", [(0, 0), (3, 1_380)], Some(Class::Bulk)),
        ("web.whatsapp.com", [(3, 1_380), (0, 0)], Some(Class::Bulk)),
        ("web.whatsapp.com", [(900, 200), (700, 300)], None),
        ("www.facebook.com", [(0, 0), (5, 1_380)], Some(Class::Video)),
        ("www.facebook.com", [(800, 500), (300, 1_380)], None),
        ("www.facebook.com", [(0, 0), (0, 0)], None),
    ] {
        let (told, samples) = live(name, ways);
        assert_eq!(verdict(&told[0]).3, Via::Sni, "{name}");
        let upgraded: Vec<_> = told[1..].iter().map(verdict).collect();
        let app = verdict(&told[0]).1;
        let expected: Vec<_> = class.into_iter().map(|class| (true, app, class, Via::Packets)).collect();
        assert_eq!(upgraded, expected, "{name} {ways:?}");
        assert!(samples <= 17, "{samples} samples of {name} {ways:?}");
    }
}

#[test]
fn after_time_went_back_flows_are_looked_at_as_before() {
    let mut classifier = classifier();
    let hello = client_hello("web.whatsapp.com", false);
    let (future, past) = (key(6, SERVER, 40_000, 443), key(6, SERVER, 40_001, 443));
    classifier.observe(&Segment::up(100, &hello).sample_of(future, at(86_400_000)));
    classifier.observe(&Segment::up(100, &hello).sample_of(past, at(0)));
    let looked_at = classifier.expire(at(1_500)).into_iter().map(|concluded| concluded.flow);
    assert!(looked_at.collect::<Vec<_>>().contains(&past));
}
