//! One device or two: in force, back where they were, refused, locked, gone, hung, lying.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use usher_models::setting::Setting;
use usher_models::units::{Micros, SubscriberId};
use usher_orchestrator::elements::{ElementState, Elements, Outcome, PushId, PushState};
use usher_tests::netconfd::NetconfServer;
use usher_tests::wait::{self, Seen};

use super::{LINE, Note, Notes, device, elements, holds, server, template, until_done, video};

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_in_force_read_back_and_confirmed() {
    let server = server!("a_push_is_in_force_read_back_and_confirmed");
    let elements = elements(&[device("x", &server)]);
    let notes = Notes::default();
    let push = video("hd");
    let plan = elements.plan(&push, &[]).await;
    assert_eq!(plan[0].error, None);
    assert_eq!(plan[0].changes.len(), 3, "{plan:?}");
    holds(&server, None);

    let done = elements.push(&push, &[], &notes.journal()).await;
    assert_eq!(done.outcome, Outcome::Done, "{done:?}");
    let part = &done.elements[0];
    assert_eq!((part.element.as_str(), part.state), ("netconf:x", ElementState::Confirmed));
    assert!(part.started <= part.enforced.unwrap() && part.enforced <= part.confirmed);
    holds(&server, Some("hd"));
    assert_eq!(
        *notes.notes.lock().unwrap(),
        [
            Note::Element("netconf:x".into(), ElementState::Committing),
            Note::Element("netconf:x".into(), ElementState::Enforced),
            Note::Push(PushState::Confirming),
        ]
    );

    let again = elements.push(&video("hd"), &[], &notes.journal()).await;
    assert_eq!(again.elements[0].state, ElementState::Unchanged, "what is there already is not sent again");
    assert_eq!(notes.notes.lock().unwrap().len(), 3);
    assert_eq!(elements.connects().collect::<Vec<_>>(), [("x", 1)], "one session serves many pushes");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_brings_back_exactly_what_was_there() {
    let server = server!("an_expiry_brings_back_exactly_what_was_there");
    let elements = elements(&[device("x", &server)]);
    server
        .configure(&format!(
            "<subscriber><id>{LINE}</id><video-quality>sd</video-quality><down-rate-bps>1500000</down-rate-bps>\
             <note>somebody else's</note></subscriber><subscriber><id>another</id><video-quality>uhd</video-quality></subscriber>"
        ))
        .unwrap();
    let before = server.subscribers().unwrap();
    let journal = Notes::default().journal();
    let mut push = video("hd");
    assert_eq!(elements.push(&push, &[], &journal).await.outcome, Outcome::Done);
    holds(&server, Some("hd"));

    // What the engine desires once the time is up, and what an expired setting means in itself, is the same.
    push.id = PushId::new();
    let expired = Setting { value: "hd".into(), until: Some(Micros::new(1)), otherwise: "sd".into() };
    push.settings.values.insert("video".into(), expired);
    assert_eq!(elements.push(&push, &[], &journal).await.outcome, Outcome::Done);
    assert_eq!(server.subscribers().unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_host_key_is_named_and_nothing_is_sent() {
    let mut server = server!("a_changed_host_key_is_named_and_nothing_is_sent");
    server.change_host_key().unwrap();
    let mut config = device("x", &server);
    config.connect = Duration::from_secs(2);
    let elements = elements(&[config]);
    let journal = Notes::default().journal();
    let outcome = elements.push(&video("hd"), &[], &journal).await.outcome;
    let Outcome::RolledBack { error } = outcome else { panic!("{outcome:?}") };
    assert!(error.starts_with("netconf:x: the host key of 127.0.0.1:"), "{error}");
    assert!(error.contains("has changed") && error.matches("SHA256:").count() == 2, "{error}");
    assert!(error.contains("ssh-ed25519") && error.contains("nothing was sent"), "{error}");

    std::fs::write(&server.known_hosts, "").unwrap();
    let unknown = elements_until(&elements, "is not in").await;
    assert!(unknown.contains("SHA256:") && unknown.contains("nothing was sent"), "{unknown}");

    server.know_host_key().unwrap();
    holds(&server, None);
    let done = until_done(&elements, &video("hd")).await;
    assert_eq!(done, Outcome::Done);
}

/// Pushes until it fails with those words: an unreachable device is not tried again at once.
async fn elements_until(elements: &Elements, words: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match elements.push(&video("hd"), &[], &Notes::default().journal()).await.outcome {
            Outcome::RolledBack { error } if error.contains(words) => return error,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_the_device_does_not_know_is_refused_with_the_users_name() {
    let server = server!("a_key_the_device_does_not_know_is_refused_with_the_users_name");
    let mut config = device("x", &server);
    config.key = Some(server.folder().join("host"));
    let outcome = elements(&[config]).push(&video("hd"), &[], &Notes::default().journal()).await.outcome;
    let Outcome::RolledBack { error } = outcome else { panic!("{outcome:?}") };
    assert!(error.contains(&format!("does not let user `{}` in", server.user)), "{error}");
    holds(&server, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_of_another_manager_are_waited_for_within_a_bound() {
    let server = server!("locks_of_another_manager_are_waited_for_within_a_bound");
    let elements = elements(&[device("x", &server)]);
    let journal = Notes::default().journal();
    let mut other = server.client().unwrap();
    other.ask("<lock><target><candidate/></target></lock>").unwrap();
    let since = Instant::now();
    let outcome = elements.push(&video("hd"), &[], &journal).await.outcome;
    let Outcome::RolledBack { error } = outcome else { panic!("{outcome:?}") };
    assert!(error.contains("lock of candidate was refused"), "{error}");
    let took = since.elapsed();
    assert!(took > Duration::from_millis(800) && took < Duration::from_secs(8), "{took:?}");

    // Let go while the push tries.
    let push = video("hd");
    let release =
        tokio::task::spawn_blocking(move || other.ask("<unlock><target><candidate/></target></unlock>"));
    let (outcome, released) = tokio::join!(elements.push(&push, &[], &journal), release);
    released.unwrap().unwrap();
    assert_eq!(outcome.outcome, Outcome::Done, "{outcome:?}");
    holds(&server, Some("hd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_somebody_else_left_in_the_candidate_are_not_published() {
    let server = server!("edits_somebody_else_left_in_the_candidate_are_not_published");
    let elements = elements(&[device("x", &server)]);
    let mut other = server.client().unwrap();
    other.edit("<subscriber><id>theirs</id><video-quality>uhd</video-quality></subscriber>").unwrap();
    let outcome = elements.push(&video("hd"), &[], &Notes::default().journal()).await.outcome;
    assert!(matches!(outcome, Outcome::RolledBack { .. }), "{outcome:?}");
    holds(&server, None);
    assert_eq!(server.video_quality("theirs").unwrap(), None);
    other.ask("<discard-changes/>").unwrap();
    assert_eq!(until_done(&elements, &video("hd")).await, Outcome::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_does_nothing_and_says_ok_is_found_out() {
    let server = server!("a_commit_that_does_nothing_and_says_ok_is_found_out");
    let elements = elements(&[device("x", &server)]);
    // This server takes the commit after somebody's validate for done, and does nothing.
    let mut other = server.client().unwrap();
    let validate = move |note: &Note| {
        if matches!(note, Note::Element(_, ElementState::Committing)) {
            other.ask("<validate><source><candidate/></source></validate>").unwrap();
        }
        Ok(())
    };
    let outcome = elements.push(&video("hd"), &[], &Notes::at(validate).journal()).await;
    let Outcome::RolledBack { error } = &outcome.outcome else { panic!("{outcome:?}") };
    assert!(error.contains("does not hold what it was told to"), "{error}");
    assert_eq!(outcome.elements[0].state, ElementState::RolledBack);
    holds(&server, None);
    assert_eq!(until_done(&elements, &video("hd")).await, Outcome::Done);
    holds(&server, Some("hd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_device_that_refuses_keeps_the_other_as_it_was() {
    let good = server!("one_device_that_refuses_keeps_the_other_as_it_was");
    let strict = NetconfServer::start().unwrap();
    let mut config = device("strict", &strict);
    let slow = ("down".to_owned(), "1 kbit/s".to_owned());
    config.settings.get_mut("video").unwrap().get_mut("hd").unwrap().extend([slow]);
    let elements = elements(&[device("good", &good), config]);
    let notes = Notes::default();
    let outcome = elements.push(&video("hd"), &[], &notes.journal()).await;
    let Outcome::RolledBack { error } = &outcome.outcome else { panic!("{outcome:?}") };
    assert!(error.starts_with("netconf:strict: edit-config was refused"), "{error}");
    assert!(notes.notes.lock().unwrap().is_empty(), "nothing was committed anywhere");
    holds(&good, None);
    holds(&strict, None);
    // Nothing is left in the candidate and no lock is held.
    assert_eq!(until_done(&elements, &video("sd")).await, Outcome::Done);
    holds(&good, Some("sd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_gone_before_its_commit_takes_the_other_back_at_once() {
    let stays = server!("a_device_gone_before_its_commit_takes_the_other_back_at_once");
    let goes = Arc::new(Mutex::new(NetconfServer::start().unwrap()));
    let elements = elements(&[device("stays", &stays), device("goes", &goes.lock().unwrap())]);
    assert_eq!(until_done(&elements, &video("sd")).await, Outcome::Done);
    let cut = Arc::clone(&goes);
    let hook = move |note: &Note| {
        if matches!(note, Note::Element(_, ElementState::Committing)) {
            cut.lock().unwrap().cut_off().unwrap();
        }
        Ok(())
    };
    let push = video("hd");
    let outcome = elements.push(&push, &[], &Notes::at(hook).journal()).await;
    assert!(
        matches!(&outcome.outcome, Outcome::Unverified { error } if error.starts_with("netconf:goes")),
        "{outcome:?}"
    );
    assert_eq!(outcome.elements[0].state, ElementState::Unverified);
    assert_eq!(outcome.elements[1].state, ElementState::RolledBack, "{outcome:?}");
    holds(&stays, Some("sd"));
    goes.lock().unwrap().start_sshd().unwrap();
    settle(&elements, &push.id, "netconf:goes").await;
    holds(&goes.lock().unwrap(), Some("sd"));
}

/// Cancels what is left, as soon as the device can be talked to again.
async fn settle(elements: &Elements, push: &PushId, element: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = elements.cancel_leftover(push, element).await {
        assert!(Instant::now() < deadline, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_gone_before_it_is_confirmed_goes_back_by_its_own_timer() {
    let server = server!("a_device_gone_before_it_is_confirmed_goes_back_by_its_own_timer");
    let config = device("x", &server);
    let server = Arc::new(Mutex::new(server));
    let elements = elements(&[config]);
    assert_eq!(until_done(&elements, &video("sd")).await, Outcome::Done);
    let cut = Arc::clone(&server);
    let hook = move |note: &Note| {
        if *note == Note::Push(PushState::Confirming) {
            cut.lock().unwrap().cut_off().unwrap();
        }
        Ok(())
    };
    let outcome = elements.push(&video("hd"), &[], &Notes::at(hook).journal()).await;
    assert!(matches!(outcome.outcome, Outcome::Unverified { .. }), "{outcome:?}");
    assert_eq!(outcome.elements[0].state, ElementState::Unverified);
    // The device's own timer runs only while nobody talks to it, so its log is watched instead.
    let log = server.lock().unwrap().folder().join("netconfd.log");
    wait::until("the device's own roll-back", Duration::from_secs(30), || {
        let log = std::fs::read_to_string(&log)?;
        Ok(Seen::when(
            log.contains("on session 0 by superuser") && log.trim_end().ends_with("'line <1> & co']"),
            (),
            &log,
        ))
    })
    .unwrap();
    let mut server = server.lock().unwrap();
    server.start_sshd().unwrap();
    holds(&server, Some("sd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_before_confirmation_leaves_the_device_as_it_was() {
    let server = server!("a_power_cut_before_confirmation_leaves_the_device_as_it_was");
    let mut config = device("x", &server);
    config.connect = Duration::from_secs(2);
    let server = Arc::new(Mutex::new(server));
    let elements = elements(&[config]);
    assert_eq!(until_done(&elements, &video("sd")).await, Outcome::Done);
    let cut = Arc::clone(&server);
    let hook = move |note: &Note| {
        if *note == Note::Push(PushState::Confirming) {
            cut.lock().unwrap().kill_engine().unwrap();
        }
        Ok(())
    };
    let push = video("hd");
    let outcome = elements.push(&push, &[], &Notes::at(hook).journal()).await;
    assert_eq!(outcome.elements[0].state, ElementState::Unverified, "{outcome:?}");
    server.lock().unwrap().start_netconfd().unwrap();
    settle(&elements, &push.id, "netconf:x").await;
    holds(&server.lock().unwrap(), Some("sd"));
    assert_eq!(until_done(&elements, &video("hd")).await, Outcome::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmation_that_fails_half_way_is_undone_where_it_had_succeeded() {
    let first = server!("a_confirmation_that_fails_half_way_is_undone_where_it_had_succeeded");
    let second = Arc::new(Mutex::new(NetconfServer::start().unwrap()));
    let elements = elements(&[device("a", &first), device("b", &second.lock().unwrap())]);
    assert_eq!(until_done(&elements, &video("sd")).await, Outcome::Done);
    let cut = Arc::clone(&second);
    let hook = move |note: &Note| {
        if *note == Note::Push(PushState::Confirming) {
            cut.lock().unwrap().cut_off().unwrap();
        }
        Ok(())
    };
    let push = video("hd");
    let outcome = elements.push(&push, &[], &Notes::at(hook).journal()).await;
    assert_eq!(outcome.elements[0].state, ElementState::RolledBack, "{outcome:?}");
    assert_eq!(outcome.elements[1].state, ElementState::Unverified, "{outcome:?}");
    holds(&first, Some("sd"));
    second.lock().unwrap().start_sshd().unwrap();
    settle(&elements, &push.id, "netconf:b").await;
    holds(&second.lock().unwrap(), Some("sd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_element_is_planned_and_left_alone() {
    let server = server!("a_dry_run_element_is_planned_and_left_alone");
    let mut config = device("x", &server);
    config.dry_run = true;
    let elements = elements(&[config]);
    let outcome = elements.push(&video("hd"), &[], &Notes::default().journal()).await;
    assert_eq!(outcome.outcome, Outcome::Done);
    assert_eq!(outcome.elements[0].state, ElementState::DryRun);
    assert_eq!(outcome.elements[0].changes.len(), 3);
    holds(&server, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_hangs_holds_up_only_pushes_that_touch_it() {
    let well = server!("a_device_that_hangs_holds_up_only_pushes_that_touch_it");
    let hung = NetconfServer::start().unwrap();
    let mut slow = device("hung", &hung);
    let values = slow.settings.remove("video").unwrap();
    slow.settings.insert("qos_down".to_owned(), values);
    slow.template = hung.folder().join("qos.yaml");
    let text = std::fs::read_to_string(template())
        .unwrap()
        .replace("video is", "qos_down is")
        .replace("video.", "qos_down.");
    std::fs::write(&slow.template, text).unwrap();
    let elements = Arc::new(elements(&[device("well", &well), slow]));
    let both = {
        let mut push = video("hd");
        push.settings.values.insert("qos_down".to_owned(), Setting::of_plan("hd"));
        push
    };
    assert_eq!(until_done(&elements, &both).await, Outcome::Done);
    hung.freeze().unwrap();
    let stuck = tokio::spawn({
        let (elements, mut push) = (Arc::clone(&elements), both.clone());
        push.settings.values.insert("qos_down".to_owned(), Setting::of_plan("sd"));
        push.settings.values.insert("video".to_owned(), Setting::of_plan("sd"));
        async move { elements.push(&push, &[], &Notes::default().journal()).await }
    });
    let mut other = video("sd");
    other.subscriber = SubscriberId("another".to_owned());
    let since = Instant::now();
    assert_eq!(elements.push(&other, &[], &Notes::default().journal()).await.outcome, Outcome::Done);
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    let outcome = stuck.await.unwrap().outcome;
    assert!(
        matches!(&outcome, Outcome::RolledBack { error } if error.starts_with("netconf:hung: no ")),
        "{outcome:?}"
    );
    hung.thaw().unwrap();
    holds(&well, Some("hd"));
}
