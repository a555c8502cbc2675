//! The laboratory itself: a real client reaches a real server through the gateway, and nothing is left behind.

use std::path::Path;
use std::time::{Duration, Instant};

use usher_tests::netns::{Lab, Place};
use usher_tests::nginx::{Nginx, VIDEO};
use usher_tests::player::{Player, Stream};
use usher_tests::record::Recording;
use usher_tests::{packets, skip};

#[test]
fn a_player_streams_through_the_gateway_over_both_versions_of_ip() {
    if let Some(reason) = skip::why_no_probe() {
        skip::skipped("a_player_streams_through_the_gateway_over_both_versions_of_ip", &reason);
        return;
    }
    let lab = Lab::new(Place::new().unwrap()).unwrap();
    let (folder, pins) = (lab.place().folder().to_owned(), lab.place().pins());
    let nginx = Nginx::start(&lab).unwrap();
    assert_eq!(lab.access_counters().unwrap().rx_packets, 0, "nothing passes before the line is plugged in");
    let recording = Recording::start(&lab).unwrap();
    lab.connect().unwrap();
    lab.add_device(&["10.77.0.11/24", "fd77::11/64"]).unwrap();
    for from in ["10.77.0.11", "fd77::11"] {
        let stream = Stream { from, name: VIDEO, segments: "large" };
        let mut player = Player::start(&lab, nginx.authority(), stream).unwrap();
        let rate =
            player.rate((Instant::now(), 5), &(20_000_000..=u64::MAX), Duration::from_secs(20)).unwrap();
        eprintln!("{from}: {rate} bit/s");
    }
    lab.disconnect().unwrap();
    let counters = lab.access_counters().unwrap();
    eprintln!("{counters:?}");
    assert!(counters.tx_bytes > 10 * 250_000);
    assert!(counters.tx_bytes <= counters.tx_packets * 1514, "frames are wire frames: {counters:?}");
    let recorded = folder.join("recorded.pcap.gz");
    let passed = counters.rx_bytes + counters.tx_bytes;
    recording.finish(passed, &recorded).unwrap();
    let recorded = packets::unpack(&recorded).unwrap();
    let told = packets::frame_bytes(&recorded).unwrap();
    assert_eq!(told, passed, "a recording cut short still tells what passed");
    drop(nginx);
    drop(lab);
    assert!(!folder.exists() && !pins.exists(), "nothing is left behind");
    let namespaces = std::fs::read_dir("/run/netns").unwrap().flatten();
    let prefix = Path::new(&folder).file_name().unwrap().to_string_lossy().into_owned();
    assert!(namespaces.into_iter().all(|entry| !entry.file_name().to_string_lossy().starts_with(&prefix)));
}
