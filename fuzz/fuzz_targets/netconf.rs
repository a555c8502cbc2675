//! What a NETCONF device sends: whichever way it is cut, the same happens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use usher_orchestrator::elements::netconf::framing::{Deframer, Framing};
use usher_orchestrator::elements::netconf::session::{Event, Session, SessionError};

fn happens<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Event>, Result<(), SessionError>) {
    let mut session = Session::new();
    session.request("<get-config/>");
    let received = pieces.into_iter().try_for_each(|piece| session.receive(piece));
    (std::iter::from_fn(|| session.next_event()).collect(), received)
}

// Input: a byte that says where to cut and in which framing to read, then what the device sends.
fuzz_target!(|data: &[u8]| {
    let Some((at, sent)) = data.split_first() else { return };
    let (head, tail) = sent.split_at(usize::from(*at).min(sent.len()));
    let (events, received) = happens([sent]);
    let (events_cut, received_cut) = happens([head, tail]);
    assert_eq!((events, received.is_ok()), (events_cut, received_cut.is_ok()));

    let mut deframer = Deframer::new(4_096);
    deframer.switch(if at & 1 == 0 { Framing::Chunked } else { Framing::EndOfMessage });
    deframer.push(sent);
    while let Ok(Some(message)) = deframer.next_message() {
        assert!(message.len() <= 4_096);
    }
});
