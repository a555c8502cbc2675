//! The tap page as a browser, a link preview and a forger meet it: a real server, real HTTP, a real ledger behind it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use usher_models::setting::{Setting, Settings};
use usher_models::units::{Micros, SubscriberId};
use usher_orchestrator::advice::page::{PageState, router};
use usher_orchestrator::advice::{Ask, LinkLabels, LinkResult, Links, Metrics, Offer, Tapped};
use usher_orchestrator::api::TcpDoor;
use usher_orchestrator::engine::io::{Cause, Decision, DecisionId, Desire, Effect, Mode, Say};
use usher_orchestrator::ledger::pushes::PushFilter;
use usher_orchestrator::ledger::{InputRecord, Ledger};

const HOUR: Duration = Duration::from_hours(1);
const TEXT: &str = "You're in Testland & around. A day pass is <3.00>; without it today costs about 20.00.";
const LINE: &str = "line-7";

struct Site {
    address: SocketAddr,
    links: Arc<Links>,
    ledger: Ledger,
    metrics: Metrics,
    stop: Option<oneshot::Sender<()>>,
    _state: tempfile::TempDir,
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

/// A page with a ledger that has sent one message, decision `ab01`, whose link ends in an hour.
async fn site() -> Site {
    let state = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&state.path().join("ledger.sqlite")).unwrap();
    let links = Arc::new(Links::open_or_create(state.path(), "https://usher.example").unwrap());
    let metrics = Metrics::default();
    let now = Micros::now();
    sent(&ledger, "ab01", now, now.after(HOUR));
    sent(&ledger, "ab02", now.before(HOUR + HOUR), now.before(HOUR));
    let (asks, asked) = mpsc::channel(16);
    tokio::spawn(engine(ledger.clone(), asked));
    let door = TcpDoor::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = door.address().unwrap();
    let page = router(PageState { links: Arc::clone(&links), asks, metrics: metrics.clone() });
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let stopped = async {
            let _ = stopped.await;
        };
        door.serve_until(page, stopped).await;
    });
    Site { address, links, ledger, metrics, stop: Some(stop), _state: state }
}

fn sent(ledger: &Ledger, id: &str, at: Micros, expires: Micros) {
    let decision = Decision {
        id: DecisionId(id.into()),
        subscriber: SubscriberId(LINE.into()),
        moment: "roam_bare".into(),
        episode: 1,
        at,
        policy: "p".into(),
        mode: Mode::Live,
        facts: BTreeMap::new(),
        words: BTreeMap::new(),
        candidates: Vec::new(),
        chosen: Some("roam_pass".into()),
        probability: 1.0,
        style: None,
    };
    let say = Say {
        decision: decision.id.clone(),
        subscriber: decision.subscriber.clone(),
        action: "roam_pass".into(),
        text: TEXT.into(),
        tap: BTreeMap::from([("roam_pass".to_owned(), "day".to_owned())]),
        tap_seconds: 86_400,
        regulated: false,
        expires,
    };
    let effects = vec![Effect::Decided(decision), Effect::Say(say)];
    ledger.apply(&InputRecord { at, effects, ..InputRecord::default() }).unwrap();
}

/// What the daemon's engine task does with what the page asks, on the same ledger.
async fn engine(ledger: Ledger, mut asks: mpsc::Receiver<Ask>) {
    while let Some(ask) = asks.recv().await {
        match ask {
            Ask::Look { decision, answer } => {
                let row = ledger.message(&decision).unwrap();
                let offer = row.map(|row| Offer {
                    text: row.say.text,
                    expires: row.say.expires,
                    lasts: Duration::from_secs(row.say.tap_seconds),
                    tapped: row.tapped,
                    declined: row.declined,
                });
                let _ = answer.send(offer);
            }
            Ask::Decline { decision, at, answer } => {
                let record = InputRecord { at, declined: Some(decision), ..InputRecord::default() };
                ledger.apply(&record).unwrap();
                let _ = answer.send(Tapped::Declined);
            }
            Ask::Stop { decision, answer } => {
                let row = ledger.message(&decision).unwrap();
                let known = row.is_some();
                let effects = row.map(|row| Effect::Withdraw(row.say.subscriber)).into_iter().collect();
                ledger.apply(&InputRecord { effects, ..InputRecord::default() }).unwrap();
                let _ = answer.send(known);
            }
            Ask::Tap { decision, at, answer } => {
                let _ = answer.send(match ledger.message(&decision).unwrap() {
                    None => Tapped::Unknown,
                    Some(row) if row.tapped.is_some() => Tapped::Already,
                    Some(_) => {
                        let value = Setting {
                            value: "day".into(),
                            until: Some(at.after(HOUR)),
                            otherwise: "none".into(),
                        };
                        let desire = Desire {
                            subscriber: SubscriberId(LINE.into()),
                            settings: Settings {
                                revision: 2,
                                values: BTreeMap::from([("roam_pass".into(), value)]),
                            },
                            cause: Cause::Tap(decision.clone()),
                        };
                        let effects = vec![Effect::Desire(desire)];
                        let record =
                            InputRecord { at, tap: Some(decision), effects, ..InputRecord::default() };
                        ledger.apply(&record).unwrap();
                        Tapped::Accepted
                    }
                });
            }
        }
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Site {
    async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: usher.example\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_lowercase(),
            body: body.to_owned(),
        }
    }

    fn link(&self, id: &str, expires: Micros) -> String {
        let link = self.links.sign(&DecisionId(id.into()), expires);
        link.strip_prefix("https://usher.example").unwrap().to_owned()
    }

    fn good(&self) -> String {
        self.link("ab01", Micros::now().after(HOUR))
    }

    fn pushes(&self) -> usize {
        self.ledger.pushes(&PushFilter::default(), 10).unwrap().len()
    }

    fn counted(&self, result: LinkResult) -> u64 {
        self.metrics.links.get_or_create(&LinkLabels { result }).get()
    }
}

#[tokio::test]
async fn opening_a_link_shows_the_offer_and_changes_nothing_however_often() {
    let site = site().await;
    let link = site.good();
    for method in ["GET", "HEAD", "GET"] {
        let answer = site.ask(method, &link, "").await;
        assert_eq!(answer.status, 200);
        if method == "GET" {
            assert!(answer.body.contains("Testland &#38; around"), "{}", answer.body);
            assert!(answer.body.contains("&#60;3.00&#62;"), "text is text, never markup: {}", answer.body);
            assert!(answer.body.contains("<form method=\"post\">"), "{}", answer.body);
            assert!(answer.body.contains("Open for another 60 minutes"), "{}", answer.body);
            assert!(answer.body.contains("It lasts 24 hours and ends by itself."), "{}", answer.body);
        }
    }
    assert_eq!(site.pushes(), 0);
    assert_eq!(site.ledger.tapped(&DecisionId("ab01".into())).unwrap(), None);
    assert_eq!(site.counted(LinkResult::shown), 3);
}

#[tokio::test]
async fn a_tap_is_accepted_once_and_the_second_changes_nothing() {
    let site = site().await;
    let link = site.good();
    let first = site.ask("POST", &link, "").await;
    assert_eq!((first.status, first.body.contains("Done")), (200, true), "{}", first.body);
    let tapped = site.ledger.tapped(&DecisionId("ab01".into())).unwrap();
    assert!(tapped.is_some());
    for method in ["POST", "GET", "POST"] {
        let again = site.ask(method, &link, "").await;
        assert_eq!(again.status, 200);
        assert!(again.body.contains("already accepted"), "{}", again.body);
        assert!(!again.body.contains("<button"), "{}", again.body);
    }
    assert_eq!(site.pushes(), 1);
    assert_eq!(site.ledger.tapped(&DecisionId("ab01".into())).unwrap(), tapped);
    assert_eq!((site.counted(LinkResult::accepted), site.counted(LinkResult::already)), (1, 3));
}

#[tokio::test]
async fn a_no_is_as_near_as_a_yes_and_is_remembered() {
    let site = site().await;
    let link = site.good();
    let shown = site.ask("GET", &link, "").await.body;
    for answer in ["yes", "no", "stop"] {
        assert!(shown.contains(&format!("name=\"answer\" value=\"{answer}\"")), "{shown}");
    }
    assert_eq!(site.ask("POST", &link, "answer=maybe").await.status, 400);
    let answer = site.ask("POST", &link, "answer=no").await;
    assert_eq!((answer.status, answer.body.contains("You said no")), (200, true), "{}", answer.body);
    let again = site.ask("GET", &link, "").await;
    assert!(again.body.contains("You said no") && !again.body.contains("<button"), "{}", again.body);
    assert_eq!((site.pushes(), site.counted(LinkResult::declined)), (0, 2));
}

#[tokio::test]
async fn whoever_wants_no_more_messages_can_say_so_also_after_the_offer_has_ended() {
    let site = site().await;
    let answer = site.ask("POST", &site.link("ab02", Micros::now().before(HOUR)), "answer=stop").await;
    assert_eq!(
        (answer.status, answer.body.contains("not write to you any more")),
        (200, true),
        "{}",
        answer.body
    );
    // What was still to be sent to the same person is not.
    assert!(site.ledger.pending_messages(9).unwrap().is_empty());
    assert_eq!(site.counted(LinkResult::stopped), 1);
    let unknown = site.ask("POST", &site.link("ff99", Micros::now().after(HOUR)), "answer=stop").await;
    assert_eq!(unknown.status, 404);
}

#[tokio::test]
async fn two_taps_at_once_are_one() {
    let site = site().await;
    let link = site.good();
    let answers = tokio::join!(site.ask("POST", &link, ""), site.ask("POST", &link, ""));
    assert_eq!((answers.0.status, answers.1.status), (200, 200));
    assert_eq!(site.pushes(), 1);
    assert_eq!((site.counted(LinkResult::accepted), site.counted(LinkResult::already)), (1, 1));
}

#[tokio::test]
async fn whoever_tapped_in_time_is_told_so_after_the_link_has_ended() {
    let site = site().await;
    site.ledger
        .apply(&InputRecord {
            at: Micros::now(),
            tap: Some(DecisionId("ab02".into())),
            ..InputRecord::default()
        })
        .unwrap();
    let answer = site.ask("GET", &site.link("ab02", Micros::now().before(HOUR)), "").await;
    assert_eq!((answer.status, answer.body.contains("already accepted")), (200, true), "{}", answer.body);
}

#[tokio::test]
async fn every_wrong_link_gets_one_clear_sentence_its_status_and_its_counter_and_changes_nothing() {
    let site = site().await;
    let good = site.good();
    let mut forged = good.clone().into_bytes();
    forged[10] = if forged[10] == b'A' { b'B' } else { b'A' };
    let cases = [
        (String::from_utf8(forged).unwrap(), 403, "not sent by us", LinkResult::forged),
        ("/t/abc".to_owned(), 400, "incomplete", LinkResult::malformed),
        ("/t/%ff%fe".to_owned(), 400, "incomplete", LinkResult::malformed),
        (good[..good.len() / 4].to_owned(), 400, "incomplete", LinkResult::malformed),
        (site.link("ab02", Micros::now().before(HOUR)), 410, "has ended", LinkResult::expired),
        (site.link("ff99", Micros::now().after(HOUR)), 404, "no longer have", LinkResult::unknown),
    ];
    for (path, status, sentence, result) in cases {
        for method in ["GET", "POST"] {
            let before = site.counted(result);
            let answer = site.ask(method, &path, "").await;
            assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
            assert!(answer.body.contains(sentence), "{method} {path}: {}", answer.body);
            assert!(!answer.body.contains("<button"), "{}", answer.body);
            assert_eq!(site.counted(result), before + 1, "{method} {path}");
        }
    }
    assert_eq!(site.pushes(), 0);
    let still = site.ask("GET", &good, "").await;
    assert_eq!(still.status, 200, "the good link is as good as before");
}

#[tokio::test]
async fn the_page_is_private_small_and_needs_nothing_from_elsewhere() {
    let site = site().await;
    for (path, status) in [(site.good(), 200), ("/t/abc".to_owned(), 400), ("/".to_owned(), 404)] {
        let answer = site.ask("GET", &path, "").await;
        assert_eq!(answer.status, status);
        for header in [
            "content-security-policy: default-src 'none'; style-src 'sha256-",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
            "x-content-type-options: nosniff",
            "x-frame-options: deny",
            "x-robots-tag: noindex, nofollow",
        ] {
            assert!(answer.head.contains(header), "{header} in {}", answer.head);
        }
        assert!(!answer.head.contains("set-cookie"));
        assert!(answer.body.len() < 2500, "{} bytes", answer.body.len());
        for never in ["<script", "http://", "https://", LINE, "src="] {
            assert!(!answer.body.contains(never), "{never} in {}", answer.body);
        }
        assert!(answer.body.contains("width=device-width") && answer.body.contains("lang=\"en\""));
    }
    assert!(!site.good().contains(LINE));
}

#[tokio::test]
async fn the_style_is_the_one_the_policy_names() {
    let site = site().await;
    let answer = site.ask("GET", &site.good(), "").await;
    let style = answer.body.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
    assert_eq!(style, include_str!("../../templates/tap.css"), "escaped or trimmed, it would not apply");
}

#[tokio::test]
async fn other_methods_and_long_bodies_are_refused() {
    let site = site().await;
    let link = site.good();
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS"] {
        assert_eq!(site.ask(method, &link, "").await.status, 405, "{method}");
    }
    assert_eq!(site.ask("POST", &link, &"x".repeat(100_000)).await.status, 413);
    assert_eq!(site.pushes(), 0);
}

#[tokio::test]
async fn an_engine_that_is_gone_means_try_again_and_never_done() {
    let links = Arc::new(Links::with_key([5; 32], "https://usher.example"));
    let (asks, asked) = mpsc::channel(1);
    drop(asked);
    let door = TcpDoor::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = door.address().unwrap();
    let state = tempfile::tempdir().unwrap();
    let metrics = Metrics::default();
    tokio::spawn(door.serve_until(
        router(PageState { links: Arc::clone(&links), asks, metrics: metrics.clone() }),
        std::future::pending(),
    ));
    let ledger = Ledger::open(&state.path().join("l")).unwrap();
    let site = Site { address, links, ledger, metrics, stop: None, _state: state };
    let answer = site.ask("POST", &site.good(), "").await;
    assert_eq!((answer.status, answer.body.contains("try again")), (503, true), "{}", answer.body);
    assert!(answer.head.contains("retry-after: 60"));
    assert_eq!(site.counted(LinkResult::busy), 1);
}
