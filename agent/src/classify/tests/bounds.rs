//! What a flood, a scan or a malicious peer can make the classifier hold, forget or do.

use super::*;

const FLOOD: u32 = 1_000_000;

/// A flow of the flood: another address and port each time.
fn stranger(number: u32, protocol: u8) -> FlowKey {
    let [a, b, c, d] = number.to_be_bytes();
    FlowKey {
        subscriber: packet::octets(IpAddr::from([10, a, b, c])),
        ..key(protocol, SERVER, 1_024 + u16::from(d), 443)
    }
}

/// Packets that differ only in who sends them are built once: the classifier looks at the key, not at the header.
fn flood(classifier: &mut Classifier, count: u32, protocol: u8, template: &Sample<'static>) {
    for number in 0..count {
        let flow = stranger(number, protocol);
        classifier.observe(&Sample { flow, slot: ANONYMOUS, ..template.clone() });
    }
}

#[test]
fn a_million_handshakes_push_out_no_flow_and_hold_nothing() {
    let mut classifier = classifier();
    let hello = client_hello("seg.streams.example", true);
    classifier.observe(&Segment::syn(99).sample(at(0)));
    let answer = Segment { syn: true, acknowledgement: Some(100), ..Segment::down(b"") };
    classifier.observe(&answer.sample(at(0)));
    // Where in a hello its name stands is left to chance.
    let name = hello.windows(11).position(|window| window == b"seg.streams").unwrap();
    assert_eq!(classifier.observe(&Segment::up(100, &hello[..name]).sample(at(0))), Observation::NeedMore);
    let before = classifier.held();
    flood(&mut classifier, FLOOD, packet::TCP, &Segment::syn(7).sample(at(1)));
    assert_eq!(classifier.held(), before);
    let rest = 100 + u32::try_from(name).unwrap();
    let named = classifier.observe(&Segment::up(rest, &hello[name..]).sample(at(2)));
    assert_eq!(named.instruction(), Some((Class::Video, false)), "the flow in progress is still known");
}

#[test]
fn a_million_datagrams_push_out_neither_flows_in_progress_nor_those_told_about() {
    let mut classifier = classifier();
    let hello = client_hello("seg.streams.example", true);
    // In progress: two segments were seen. Told: a later packet was seen.
    let half = key(6, SERVER, 40_000, 443);
    classifier.observe(&Segment::up(100, &hello[..300]).sample_of(half, at(0)));
    classifier.observe(&Segment::up(400, &hello[300..500]).sample_of(half, at(1)));
    let whole = key(6, SERVER, 40_001, 443);
    assert!(matches!(
        classifier.observe(&Segment::up(100, &hello).sample_of(whole, at(0))),
        Observation::Named(_)
    ));
    let again = Observation::Again { class: Class::Video, sampling: false };
    assert_eq!(classifier.observe(&Segment::up(9_000, b"x").sample_of(whole, at(1))), again);

    // One begins as QUIC of an unknown version would, the other as nothing that is known.
    let quic = [&[0xc3, 0xfa, 0xce, 0xb0, 2, 8][..], &[7; 1_300]].concat();
    for (count, payload) in [(FLOOD, &b"opaque"[..]), (FLOOD / 20, &quic)] {
        let template = udp(key(17, SERVER, 1, 443), ANONYMOUS, Direction::Up, at(2), payload);
        flood(&mut classifier, count, packet::UDP, &template);
    }
    let limits = Limits::default();
    for (kind, held) in classifier.held() {
        match kind {
            "streams" => assert!(held <= limits.streams),
            "stream_bytes" => assert!(held <= limits.stream_bytes),
            "told" => assert!(held <= limits.told),
            _ => {}
        }
    }
    assert_eq!(classifier.observe(&Segment::up(9_001, b"x").sample_of(whole, at(3))), again);
    let rest = Segment::up(600, &hello[500..]).sample_of(half, at(3));
    assert_eq!(classifier.observe(&rest).instruction(), Some((Class::Video, false)));
}

#[test]
fn a_hello_in_the_smallest_segments_costs_no_more_than_its_bounds() {
    let mut classifier = classifier();
    let hello = client_hello("pages.example", true);
    classifier.observe(&Segment::syn(99).sample(at(0)));
    let mut samples = 0;
    for (number, byte) in hello.iter().enumerate().skip(1) {
        let segment = Segment::up(100 + u32::try_from(number).unwrap(), &[*byte]);
        samples += 1;
        if classifier.observe(&segment.sample(at(0))) != Observation::NeedMore {
            break;
        }
    }
    assert!(samples <= usize::from(stream::MAX_SEGMENTS) + 1, "{samples}");
    assert!(classifier.counters().contains(&("stream_too_long", 1)));
    assert_eq!(classifier.held()[..2], [("streams", 0), ("stream_bytes", 0)]);
}

proptest! {
    #[test]
    fn whatever_comes_in_whatever_order_all_is_bounded_and_told_once(
        packets in proptest::collection::vec(
            (0_u8..8, 0_u16..6, any::<bool>(), 0_i64..40_000, proptest::collection::vec(any::<u8>(), 0..40)),
            0..200,
        ),
    ) {
        let limits = Limits { streams: 2, stream_bytes: 200, told: 4, watched: 2, waiting: 2, ..Limits::default() };
        let mut catalogue = Catalogue::built_in();
        catalogue.extend("own.yaml", "prefixes: [{prefix: 192.0.2.0/24, app: facebook, class: social}]").unwrap();
        let mut classifier = Classifier::with_limits(catalogue, limits);
        let hello = client_hello("www.facebook.com", false);
        let mut now = 0;
        for (kind, port, down, after, bytes) in packets {
            now += after / 20;
            let direction = if down { Direction::Down } else { Direction::Up };
            let (tcp, datagrams) = (key(6, SERVER, port, 443), key(17, SERVER, port, 443));
            let up = |bytes: &[u8]| Segment { direction, ..Segment::up(u32::from(port), bytes) };
            match kind {
                0 => drop(classifier.observe(&Segment::syn(u32::from(port)).sample_of(tcp, at(now)))),
                1 => drop(classifier.observe(&up(&hello[..200]).sample_of(tcp, at(now)))),
                2 => drop(classifier.observe(&up(&hello).sample_of(tcp, at(now)))),
                3 => drop(classifier.observe(&up(&bytes).sample_of(tcp, at(now)))),
                4 => drop(classifier.observe(&udp(datagrams, 7, direction, at(now), &bytes))),
                5 => drop(classifier.observe(&udp(datagrams, 7, direction, at(now), &protocols::stun(8)))),
                6 => drop(resolve(&mut classifier, 7, "pages.example", 60)),
                _ => drop(classifier.expire(at(now))),
            }
            let held = classifier.held();
            prop_assert!(held[0].1 <= 2 && held[1].1 <= 200 && held[3].1 <= 4 && held[4].1 <= 2, "{held:?}");
            prop_assert!(classifier.due.len() <= 2);
            prop_assert!(classifier.looks.iter().all(|queue| queue.len() <= 8));
        }
        classifier.finish();
        prop_assert_eq!(&classifier.held()[..2], &[("streams", 0), ("stream_bytes", 0)]);
    }
}

#[test]
fn one_subscribers_flood_of_outer_names_and_calls_forgets_nobody_elses() {
    let mut classifier = classifier();
    let resolver = key(17, RESOLVER, 5_001, 53);
    let make_outer = |classifier: &mut Classifier, slot: u32, outer: &str| {
        let answer = dns::tests::https("seg.streams.example", &ech::tests::list(outer));
        classifier.observe(&udp(resolver, slot, Direction::Up, at(0), &query("seg.streams.example")));
        classifier.observe(&udp(resolver, slot, Direction::Down, at(0), &answer));
    };
    resolve(&mut classifier, 7, "seg.streams.example", 60);
    make_outer(&mut classifier, 7, "pages.example");
    let call = |port| FlowKey {
        subscriber: packet::octets(IpAddr::from([10, 0, 0, 3])),
        ..key(17, SERVER, port, 9_000)
    };
    let relayed = protocols::stun(0x4000);
    classifier.observe(&udp(key(17, SERVER, 6_000, 3_478), 7, Direction::Up, at(0), &relayed));

    let bounds = Limits::default();
    for number in 0..20_000_u16 {
        make_outer(&mut classifier, 8, &format!("n{number}.flood.test"));
        classifier.observe(&udp(call(number), 8, Direction::Up, at(0), &relayed));
    }
    let counted = |reason| classifier.counters().into_iter().find(|(name, _)| *name == reason).unwrap().1;
    assert_eq!(counted("outer_name_evicted"), 20_000 - bounds.outer_names.each as u64);
    assert_eq!(counted("caller_evicted"), 20_000 - bounds.callers.each as u64);

    let hello =
        Segment::up(100, &client_hello("pages.example", false)).sample_of(key(6, SERVER, 40_000, 443), at(1));
    let Observation::Named(named) = classifier.observe(&hello) else { panic!("named") };
    assert_eq!(
        (named.app.as_deref(), named.via),
        (Some("streams"), Via::Dns),
        "the name is still an outer one"
    );
    let to_peer =
        udp(key(17, [198, 51, 100, 7], 6_000, 9_000), 7, Direction::Up, at(1), &protocols::stun(0x0006));
    let Observation::Named(named) = classifier.observe(&to_peer) else { panic!("named") };
    assert_eq!(named.app.as_deref(), Some("whatsapp"), "the port is still that of a call");

    // A session that ends takes all of it along.
    classifier.forget(7);
    let hello = Sample { flow: key(6, SERVER, 40_001, 443), ..hello };
    let Observation::Named(named) = classifier.observe(&hello) else { panic!("named") };
    assert_eq!(named.via, Via::Sni);
}
