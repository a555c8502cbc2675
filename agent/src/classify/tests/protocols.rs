//! Flows that carry no name and show what they are.

use super::*;

const PEER: [u8; 4] = [198, 51, 100, 7];

/// A STUN request with one attribute.
pub(super) fn stun(attribute: u16) -> Vec<u8> {
    let [high, low] = attribute.to_be_bytes();
    [&[0, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12], &[high, low, 0, 4, 0, 0, 0, 1]].concat()
}

fn told(observation: &Observation) -> (Option<&str>, Class, Via) {
    let Observation::Named(verdict) = observation else { panic!("{observation:?}") };
    (verdict.app.as_deref(), verdict.class, verdict.via)
}

#[test]
fn a_calls_flow_to_the_other_party_is_of_the_app_its_port_spoke_to_a_relay_by() {
    let mut classifier = classifier();
    let relay = key(17, SERVER, 51_518, 3_478);
    let first = classifier.observe(&udp(relay, 7, Direction::Up, at(0), &stun(0x4000)));
    assert_eq!(told(&first), (Some("whatsapp"), Class::Call, Via::Signature));
    let peer = key(17, PEER, 51_518, 9_344);
    let second = classifier.observe(&udp(peer, 7, Direction::Up, at(1_000), &stun(8)));
    assert_eq!(told(&second), (Some("whatsapp"), Class::Call, Via::Signature));
    // Another port, or the same one much later, is a call of nobody knows which app.
    let other = key(17, PEER, 51_519, 9_344);
    let other = classifier.observe(&udp(other, 7, Direction::Up, at(1_000), &stun(8)));
    assert_eq!(told(&other), (Some("stun"), Class::Call, Via::Signature));
    let late = key(17, PEER, 51_518, 9_345);
    let late = classifier.observe(&udp(late, 7, Direction::Up, at(600_000), &stun(8)));
    assert_eq!(told(&late).0, Some("stun"));
}

#[test]
fn a_calls_app_is_that_of_the_name_its_relay_was_called() {
    let mut classifier = classifier();
    resolve(&mut classifier, 7, "relay.zoom.us", 60);
    let flow = key(17, SERVER, 51_518, 3_478);
    let named = classifier.observe(&udp(flow, 7, Direction::Up, at(0), &stun(8)));
    assert_eq!(told(&named), (Some("zoom"), Class::Call, Via::Signature));
    let again = classifier.observe(&udp(flow, 7, Direction::Up, at(1), b"media"));
    assert_eq!(again, Observation::Again { class: Class::Call, sampling: false });
}

#[test]
fn a_connection_taken_up_in_its_middle_or_spoken_first_by_the_server_shows_its_protocol() {
    let flow = key(6, SERVER, 40_000, 50_000);
    for (segments, expected) in [
        (vec![Segment::down(b"\x13BitTorrent protocol\0\0\0\0")], ("bittorrent", Class::Bulk)),
        (vec![Segment::syn(99), Segment::down(b"SSH-2.0-server\r\n")], ("ssh", Class::Other)),
        (vec![Segment::syn(99), Segment::up(100, b"REGISTER sip:a.test SIP/2.0\r\n")], ("sip", Class::Call)),
    ] {
        let mut classifier = classifier();
        let last = segments.iter().map(|segment| classifier.observe(&segment.sample_of(flow, at(0)))).last();
        let last = last.unwrap();
        assert_eq!(told(&last), (Some(expected.0), expected.1, Via::Signature));
        assert_eq!(classifier.held()[..2], [("streams", 0), ("stream_bytes", 0)]);
    }
}

#[test]
fn the_other_ends_prefix_is_the_last_word_where_there_is_no_other() {
    let mut catalogue = Catalogue::built_in();
    catalogue.extend("own.yaml", "prefixes: [{prefix: 192.0.2.0/24, app: mine, class: social}]").unwrap();
    let mut classifier = Classifier::new(catalogue);
    let flow = |port| key(17, SERVER, port, 9_000);
    let named = classifier.observe(&udp(flow(1), 7, Direction::Up, at(0), b"opaque"));
    assert_eq!(told(&named), (Some("mine"), Class::Social, Via::Prefix));
    resolve(&mut classifier, 7, "seg.streams.example", 60);
    let named = classifier.observe(&udp(flow(2), 7, Direction::Up, at(0), b"opaque"));
    assert_eq!(told(&named), (Some("streams"), Class::Video, Via::Dns));
    let named = classifier.observe(&udp(flow(3), 7, Direction::Up, at(0), &stun(0x4000)));
    assert_eq!(told(&named), (Some("whatsapp"), Class::Call, Via::Signature));
}

#[test]
fn an_outer_hellos_name_gives_way_to_the_name_by_dns() {
    let hello = client_hello("cloudflare-ech.com", false);
    let mut classifier = classifier();
    let segment = Segment::up(100, &hello);
    let alone = classifier.observe(&segment.sample_of(key(6, SERVER, 40_000, 443), at(0)));
    assert_eq!(told(&alone), (Some("cloudflare"), Class::Web, Via::Sni));
    resolve(&mut classifier, 7, "seg.streams.example", 60);
    let known = classifier.observe(&segment.sample_of(key(6, SERVER, 40_001, 443), at(0)));
    assert_eq!(told(&known), (Some("streams"), Class::Video, Via::Dns));
}

#[test]
fn a_name_that_an_https_record_makes_an_outer_one_gives_way_to_dns_for_who_asked() {
    let flow = |port| key(6, SERVER, port, 443);
    let hello = client_hello("pages.example", false);
    let hello = Segment::up(100, &hello);
    let mut classifier = classifier();
    resolve(&mut classifier, 7, "seg.streams.example", 60);
    // A client that pretends to encrypt shows the true name.
    let named = classifier.observe(&hello.sample_of(flow(1), at(0)));
    assert_eq!(told(&named), (Some("pages"), Class::Web, Via::Sni));
    let resolver = key(17, RESOLVER, 5_001, 53);
    let question = query("seg.streams.example");
    let answer = dns::tests::https("seg.streams.example", &ech::tests::list("pages.example"));
    classifier.observe(&udp(resolver, 7, Direction::Down, at(1), &answer));
    let named = classifier.observe(&hello.sample_of(flow(2), at(1)));
    assert_eq!(told(&named).2, Via::Sni, "nobody asked for that answer");
    classifier.observe(&udp(resolver, 7, Direction::Up, at(2), &question));
    classifier.observe(&udp(resolver, 7, Direction::Down, at(2), &answer));
    let named = classifier.observe(&hello.sample_of(flow(3), at(3)));
    assert_eq!(told(&named), (Some("streams"), Class::Video, Via::Dns));
    // Nobody else's hellos are judged by it.
    let others = Sample { slot: 8, ..hello.sample_of(flow(4), at(3)) };
    assert_eq!(told(&classifier.observe(&others)), (Some("pages"), Class::Web, Via::Sni));
}
