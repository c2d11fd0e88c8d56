//! Checks the world against Agora's documentation.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::simulator::{
    AppScript, Burst, Dialect, Fate, Load, Network, RateLimit, RegionScript, TokenScript,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A request for a feed of the script's first App ID, with its credentials.
fn request(script: &Script, endpoint: Endpoint) -> Request {
    let app = &script.apps[0];
    Request::get(format!("/dev/v2/project/{}/rtm/vendor/{endpoint}", app.app_id))
        .header("x-agora-token", &app.tokens[0].token)
}

fn app() -> AppScript {
    let tokens = vec![TokenScript { token: "good".into(), user_id: None, until: None }];
    AppScript { tokens, ..AppScript::default() }
}

/// `events` user events, all one second after the start.
fn burst(events: u32) -> Script {
    let bursts = vec![Burst { at: SECOND, events, over: Duration::ZERO }];
    let load = Load { bursts, ..Load::default() };
    Script { apps: vec![AppScript { user_events: load, ..app() }], ..Script::default() }
}

fn regions(names: &[&str]) -> Vec<RegionScript> {
    names.iter().map(|name| RegionScript::new(*name)).collect()
}

fn elements(body: &[u8]) -> Vec<Value> {
    let body: Value = serde_json::from_slice(body).unwrap();
    assert_eq!(body["result"], "success");
    body["events"].as_array().cloned().unwrap_or_default()
}

fn ask(world: &mut World, now: Duration, region: usize) -> Answer {
    let request = request(world.script(), Endpoint::User);
    world.answer(now, region, &request)
}

#[test]
fn reading_is_destructive_and_a_thousand_at_most() {
    let mut world = World::new(burst(1_500));
    let counts = [1_000, 500, 0].map(|expected| {
        let answer = ask(&mut world, SECOND, 0);
        assert_eq!(answer.status, 200);
        assert_eq!(elements(&answer.body).len(), expected);
        expected as u64
    });
    assert_eq!(world.ledger().answers().iter().map(|it| it.taken).collect::<Vec<_>>(), counts);
    let total = world.ledger().total();
    assert_eq!((total.made, total.delivered, total.buffered), (1_500, 1_500, 0));
}

#[test]
fn of_more_than_two_thousand_the_oldest_are_overwritten() {
    let mut world = World::new(burst(2_500));
    world.advance(SECOND);
    assert_eq!(world.backlog(0, 0, Endpoint::User), 2_000);
    let fates: Vec<Fate> = world.ledger().events().map(|it| it.fate).collect();
    assert!(fates[..500].iter().all(|fate| *fate == Fate::Overwritten));
    assert!(fates[500..].iter().all(|fate| *fate == Fate::Buffered));
}

#[test]
fn endpoints_and_apps_have_buffers_of_their_own() {
    let numbered = |index| AppScript { tokens: app().tokens, ..AppScript::numbered(index) };
    let apps = vec![numbered(0).rates(100.0, 50.0), numbered(1).rates(200.0, 0.0)];
    let mut world = World::new(Script { apps, ..Script::default() });
    world.advance(SECOND);
    let backlogs = |world: &World| {
        [(0, Endpoint::User), (0, Endpoint::Channel), (1, Endpoint::User), (1, Endpoint::Channel)]
            .map(|(app, endpoint)| world.backlog(0, app, endpoint))
    };
    let [users, channels, others, none] = backlogs(&world);
    assert!(users > 0 && channels > 0 && others > 0 && none == 0);
    ask(&mut world, SECOND, 0);
    assert_eq!(backlogs(&world), [0, channels, others, 0]);
}

#[test]
fn each_refusal_has_its_status_and_takes_nothing() {
    let disabled = AppScript { disabled: true, ..AppScript::numbered(1) };
    let mut script = burst(10);
    script.apps.push(AppScript { tokens: app().tokens, ..disabled });
    let good = request(&script, Endpoint::User);
    let with_path = |path: String| Request { path, ..good.clone() };
    let of = |app: &str| with_path(format!("/dev/v2/project/{app}/rtm/vendor/user_events"));
    let disabled_id = script.apps[1].app_id.clone();
    let mut world = World::new(script);
    for (request, status, message) in [
        (of("unknown"), 400, "invalid appid"),
        (Request::get(&good.path), 401, "Invalid authentication credentials"),
        (of(disabled_id.as_str()), 403, "Signaling is not enabled for this App ID"),
        (with_path(good.path.to_uppercase()), 404, "not found"),
        (Request { method: "POST".into(), ..good.clone() }, 405, "method not allowed"),
    ] {
        let answer = world.answer(SECOND, 0, &request);
        assert_eq!(answer.status, status, "{request:?}");
        assert_eq!(serde_json::from_slice::<Value>(&answer.body).unwrap()["message"], message);
    }
    assert_eq!(world.backlog(0, 0, Endpoint::User), 10);
}

#[test]
fn the_console_lists_what_the_credentials_open() {
    let mut script = burst(10);
    script.apps[0].customer_id = "Aladdin".into();
    script.apps[0].customer_secret = "open sesame".into();
    script.apps.push(AppScript::numbered(1));
    let app_id = script.apps[0].app_id.clone();
    let mut world = World::new(script);
    let request = Request::get("/dev/v1/projects");
    assert_eq!(world.answer(SECOND, 0, &request).status, 401);
    let basic = request.header("Authorization", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    let list: Value = serde_json::from_slice(&world.answer(SECOND, 0, &basic).body).unwrap();
    assert_eq!(list["projects"].as_array().unwrap().len(), 1);
    assert_eq!(list["projects"][0]["vendor_key"], app_id.as_str());
    assert_eq!(list["projects"][0]["status"], 1);
    assert_eq!(world.backlog(0, 0, Endpoint::User), 10);
}

#[test]
fn the_eleventh_request_of_a_second_is_refused_over_regions_and_endpoints() {
    let limit = RateLimit { retry_after: Some(SECOND), ..RateLimit::default() };
    let mut world = World::new(Script { regions: regions(&["eu", "ap"]), limit, ..burst(1) });
    let mut ask = |at, region, endpoint| {
        let request = request(world.script(), endpoint);
        world.answer(at, region, &request)
    };
    for turn in 0..10 {
        let endpoint = Endpoint::ALL[turn / 5];
        let at = 100 * MS * u32::try_from(turn).unwrap();
        assert_eq!(ask(at, turn % 2, endpoint).status, 200);
    }
    let refused = ask(SECOND - MS, 0, Endpoint::User);
    assert_eq!(refused.status, 429);
    assert!(refused.headers.contains(&("Retry-After".into(), "1".into())));
    // The refused request still counts: at one second, the first left the window and this one
    // entered.
    assert_eq!(ask(SECOND, 0, Endpoint::User).status, 429);
    assert_eq!(ask(SECOND + 101 * MS, 0, Endpoint::User).status, 429, "a persistent client");
    assert_eq!(ask(2 * SECOND + 101 * MS, 0, Endpoint::User).status, 200);
    let requests = world.ledger().requests(0);
    assert_eq!((requests.asked, requests.over_limit, requests.most_in_a_second), (14, 3, 11));
}

#[test]
fn a_request_with_wrong_credentials_uses_up_nobodys_limit() {
    let mut world = World::new(burst(1));
    let path = request(world.script(), Endpoint::User).path;
    for _ in 0..20 {
        assert_eq!(world.answer(SECOND, 0, &Request::get(&path)).status, 401);
    }
    assert_eq!(ask(&mut world, SECOND, 0).status, 200);
}

#[test]
fn a_detour_leads_to_another_regions_buffer_and_back() {
    let mut regions = regions(&["eu", "ap"]);
    regions[0] = regions[0].clone().detour(2 * SECOND, "ap").detour(3 * SECOND, "eu");
    let mut world = World::new(Script { regions, ..burst(100) });
    let taken = [1_900, 2_000, 2_999, 3_000].map(|at| {
        let taken = elements(&ask(&mut world, at * MS, 0).body).len();
        (taken, world.ledger().answers().last().unwrap().region)
    });
    assert_eq!(taken, [(100, 0), (100, 1), (0, 1), (0, 0)]);
    assert_eq!(world.ledger().total().repeats, 100);
}

#[test]
fn regions_copy_late_and_remove_apart() {
    let copy_delay = Spread::always(300 * MS);
    let script = Script { regions: regions(&["eu", "ap"]), copy_delay, ..burst(100) };
    let mut world = World::new(script);
    let backlogs = |world: &World| [0, 1].map(|region| world.backlog(region, 0, Endpoint::User));
    world.advance(SECOND + 299 * MS);
    let [eu, ap] = backlogs(&world);
    assert!(eu > 20 && ap > 20 && eu + ap == 100, "each event has one home: {eu}, {ap}");
    world.advance(SECOND + 300 * MS);
    assert_eq!(backlogs(&world), [100, 100]);
    ask(&mut world, SECOND + 300 * MS, 0);
    assert_eq!(backlogs(&world), [0, 100]);
    ask(&mut world, SECOND + 300 * MS, 1);
    let total = world.ledger().total();
    assert_eq!((total.delivered, total.repeats), (100, 100));
}

#[test]
fn a_cut_tears_exactly_the_events_whose_bytes_were_not_sent() {
    for kind in [FaultKind::Cut, FaultKind::Reset, FaultKind::Silent] {
        for seed in 0..20 {
            let faults = vec![Fault::new(kind)];
            let mut world = World::new(Script { seed, faults, ..burst(100) });
            let answer = ask(&mut world, SECOND, 0);
            let sent = answer.sent_body().unwrap();
            assert!(sent.len() < answer.body.len());
            let complete = sent.iter().filter(|byte| **byte == b'}').count() as u64;
            let total = world.ledger().total();
            assert_eq!((total.delivered, total.torn), (complete, 100 - complete));
            let record = &world.ledger().answers()[0];
            assert_eq!((record.taken, record.complete), (100, complete));
            assert_eq!(record.fault, Some(kind));
        }
    }
}

#[test]
fn faults_that_come_before_the_read_take_nothing() {
    for (kind, status) in [
        (FaultKind::Ignored, 200),
        (FaultKind::TimedOut, 408),
        (FaultKind::Throttled, 429),
        (FaultKind::ServerError, 502),
        (FaultKind::Failed, 200),
        (FaultKind::NotJson, 200),
    ] {
        let mut world = World::new(Script { faults: vec![Fault::new(kind)], ..burst(10) });
        let answer = ask(&mut world, SECOND, 0);
        assert_eq!(answer.status, status, "{kind}");
        assert_eq!(world.backlog(0, 0, Endpoint::User), 10, "{kind}");
        assert_eq!(answer.ending == Ending::Never, kind == FaultKind::Ignored, "{kind}");
    }
}

#[test]
fn faults_that_come_after_the_read_take_all() {
    for (kind, delivered) in [(FaultKind::NoAnswer, 0), (FaultKind::Slow, 10)] {
        let mut world = World::new(Script { faults: vec![Fault::new(kind)], ..burst(10) });
        ask(&mut world, SECOND, 0);
        let total = world.ledger().total();
        assert_eq!((total.delivered, total.torn), (delivered, 10 - delivered), "{kind}");
    }
}

#[test]
fn a_fault_may_name_a_delay_in_either_form() {
    for (as_date, value) in [(false, "3"), (true, "Fri, 03 Jan 2020 00:00:04 GMT")] {
        let fault = Fault {
            retry_after: Some(3 * SECOND),
            retry_after_as_date: as_date,
            ..Fault::new(FaultKind::Throttled)
        };
        let mut world = World::new(Script { faults: vec![fault], ..burst(1) });
        let answer = ask(&mut world, SECOND, 0);
        assert!(answer.headers.contains(&("Retry-After".into(), value.into())), "{answer:?}");
    }
}

#[test]
fn connections_are_refused_or_swallowed_where_the_script_says() {
    let faults = vec![
        Fault::new(FaultKind::Refused).between(SECOND, 2 * SECOND),
        Fault::new(FaultKind::BlackHole).between(2 * SECOND, 3 * SECOND),
    ];
    let mut world = World::new(Script { faults, ..burst(1) });
    assert_eq!(world.closed(0), [(SECOND, 2 * SECOND)]);
    assert_eq!(world.connect(Duration::ZERO, 0), Connection::Accepted);
    assert_eq!(world.connect(SECOND, 0), Connection::Refused);
    assert_eq!(world.connect(2 * SECOND, 0), Connection::BlackHole);
    assert_eq!(world.connect(3 * SECOND, 0), Connection::Accepted);
    assert_eq!(ask(&mut world, 3 * SECOND, 0).status, 200);
}

#[test]
fn a_host_that_denies_takes_no_event_and_the_other_one_answers() {
    for status in [400, 401, 403, 404] {
        let fault = Fault::new(FaultKind::Denied).status(status).region("eu");
        let fault = Fault { retry_after: Some(5 * SECOND), ..fault };
        let faults = vec![fault.between(2 * SECOND, 4 * SECOND)];
        let regions = regions(&["eu", "ap"]);
        let mut world = World::new(Script { regions, faults, ..burst(7) });
        let denied = ask(&mut world, 3 * SECOND, 0);
        assert_eq!(denied.status, status);
        assert!(denied.headers.contains(&("Retry-After".into(), "5".into())), "{denied:?}");
        let body: Value = serde_json::from_slice(&denied.body).unwrap();
        assert!(body["message"].is_string(), "{body}");
        assert_eq!(elements(&ask(&mut world, 3 * SECOND, 1).body).len(), 7);
        assert_eq!(elements(&ask(&mut world, 4 * SECOND, 0).body).len(), 7);
    }
}

#[test]
fn a_page_takes_its_share_of_the_time_of_a_full_one() {
    let network = Network { page_time: Some(700 * MS), ..Network::default() };
    let mut world = World::new(Script { network, ..burst(1_250) });
    for (events, millis) in [(1_000, 700), (250, 175), (0, 0)] {
        let answer = ask(&mut world, 2 * SECOND, 0);
        let takes = answer.ending.takes(answer.body.len());
        assert!(takes.abs_diff(millis * MS) <= 2 * MS, "{events} events in {takes:?}");
        assert_eq!(answer.sent_body(), Some(&answer.body[..]));
    }
}

#[test]
fn each_half_of_a_round_trip_is_drawn_for_itself() {
    let mut world = World::new(Script {
        network: Network { rtt: Spread::millis(20, 40), ..Network::default() },
        ..Script::default()
    });
    let trips: Vec<_> = (0..200).map(|_| world.round_trip()).collect();
    for half in trips.iter().flat_map(|trip| [trip.0, trip.1]) {
        assert!((10 * MS..=20 * MS).contains(&half), "{half:?}");
    }
    assert!(trips.iter().any(|(there, back)| there.abs_diff(*back) > 5 * MS));
}

#[test]
fn time_never_runs_backwards() {
    let mut world = World::new(burst(1));
    world.advance(2 * SECOND);
    ask(&mut world, SECOND, 0);
    assert_eq!(world.ledger().answers()[0].at, 2 * SECOND);
}

#[test]
fn a_stopped_load_stays_stopped_but_copies_arrive() {
    let app = app().rates(1_000.0, 1_000.0);
    let script = Script { apps: vec![app], regions: regions(&["eu", "ap"]), ..Script::default() };
    let mut world = World::new(script);
    world.advance(SECOND);
    world.stop_load();
    world.advance(9 * SECOND);
    let made = world.ledger().total().made;
    assert!((1_700..2_300).contains(&made), "{made}");
    let backlog = |region| {
        Endpoint::ALL.map(|endpoint| world.backlog(region, 0, endpoint) as u64).iter().sum::<u64>()
    };
    assert_eq!((backlog(0), backlog(1)), (made, made));
}

#[test]
fn a_seed_is_a_seed() {
    let run = |seed| {
        let mut world = World::new(troubled(seed, 2));
        let answers: Vec<Answer> =
            (1..40).map(|turn| ask(&mut world, 110 * MS * turn, turn as usize % 2)).collect();
        let trips: Vec<_> = (0..10).map(|_| world.round_trip()).collect();
        (answers, trips, world.ledger().events().collect::<Vec<_>>())
    };
    assert!(run(3) == run(3));
    assert!(run(3) != run(4));
}

#[test]
fn what_happens_does_not_depend_on_who_asks() {
    let mut asked = World::new(troubled(1, 2));
    let mut unasked = World::new(troubled(1, 2));
    for turn in 1..40 {
        ask(&mut asked, 110 * MS * turn, 0);
    }
    unasked.advance(asked.now());
    let happened = |world: &World| {
        world.ledger().events().map(|it| (it.seq, it.user, it.channel, it.kind, it.ms)).collect()
    };
    let (one, other): (Vec<_>, Vec<_>) = (happened(&asked), happened(&unasked));
    assert!(one == other);
}

/// Every kind of fault at once.
fn troubled(seed: u64, region_count: usize) -> Script {
    let app = AppScript {
        wild_names: true,
        unknown_fields: true,
        wild_layout: true,
        malformed: 0.1,
        users: 50,
        dialect: Dialect { seconds: seed % 2 == 1, ..Dialect::default() },
        ..app().rates(800.0, 300.0)
    };
    let kinds = FaultKind::ALL.into_iter().filter(|kind| !kind.strikes_connections());
    Script {
        seed,
        apps: vec![app],
        regions: regions(&["eu", "ap", "us"][..region_count]),
        faults: kinds.map(|kind| Fault::new(kind).share(0.05)).collect(),
        network: Network { framing: FramingChoice::Mixed, ..Network::default() },
        ..Script::default()
    }
}

/// What an ideal consumer has: the raw elements that were sent, identified by their bytes alone,
/// without knowledge of the script.
fn received(sent: &[u8]) -> Vec<Vec<u8>> {
    let key = b"\"events\":";
    let Some(start) = sent.windows(key.len()).position(|it| it == key) else { return Vec::new() };
    let list = sent[start + key.len()..].trim_ascii_start();
    let (mut depth, mut in_text, mut escaped, mut is_open) = (0, false, false, true);
    let (mut element, mut elements) = (Vec::new(), Vec::new());
    for byte in list.strip_prefix(b"[").unwrap_or_default() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b',' | b']' if depth == 0 => {
                elements.push(std::mem::take(&mut element));
                is_open = *byte == b',';
                if is_open {
                    continue;
                }
                break;
            }
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        element.push(*byte);
    }
    // Of a body that was cut, the last element counts if its own bytes show its end.
    let shows_its_end = matches!(element.trim_ascii().last(), Some(b'}' | b']' | b'"'));
    if is_open && depth == 0 && !in_text && shows_its_end {
        elements.push(element);
    }
    elements.iter().map(|it| it.trim_ascii().to_vec()).filter(|it| !it.is_empty()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Compares the ledger with an observer that sees only bytes: it received exactly the events
    /// that the ledger counts as delivered.
    #[test]
    fn the_ledger_tells_what_was_sent(seed: u64, region_count in 1_usize..=3) {
        let mut world = World::new(troubled(seed, region_count));
        let mut seen: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        for turn in 1..60_u32 {
            let region = turn as usize % region_count;
            let answer = ask(&mut world, 105 * MS * turn, region);
            let Some(sent) = answer.sent_body() else { continue };
            for element in received(sent) {
                *seen.entry(element).or_default() += 1;
            }
        }
        let total = world.ledger().total();
        prop_assert!(total.balance());
        prop_assert!(total.delivered > 0);
        prop_assert_eq!(seen.values().sum::<u64>(), total.delivered + total.repeats);
        let style = world.ledger().style(0).unwrap();
        for recorded in world.ledger().events() {
            let mut bytes = Vec::new();
            let copied = Copied { seq: recorded.seq, line: u32::try_from(recorded.seq).unwrap() };
            style.write(world.ledger().event(copied).unwrap(), &mut bytes);
            let is_delivered = matches!(recorded.fate, Fate::Delivered { .. });
            let is_alike = recorded.malformed.is_some_and(|it| it == b"{}");
            prop_assert!(
                is_alike || seen.contains_key(&bytes) == is_delivered,
                "{:?}: {}", recorded.fate, String::from_utf8_lossy(&bytes)
            );
        }
    }

    #[test]
    fn a_region_hands_over_each_users_and_channels_events_in_order(
        seed: u64,
        region_count in 1_usize..=3,
        pause in 50_u32..500,
    ) {
        let app = app().rates(500.0, 500.0);
        let mut world = World::new(Script {
            seed,
            apps: vec![AppScript { users: 20, channels: 5, ..app }],
            regions: regions(&["eu", "ap", "us"][..region_count]),
            limit: RateLimit { requests_per_second: 1_000, ..RateLimit::default() },
            ..Script::default()
        });
        let mut last: HashMap<(usize, String), u64> = HashMap::new();
        for turn in 1..20_u32 {
            for (region, endpoint) in (0..region_count).flat_map(|it| Endpoint::ALL.map(|e| (it, e))) {
                let request = request(world.script(), endpoint);
                let answer = world.answer(pause * MS * turn, region, &request);
                let mut times = Vec::new();
                for event in elements(&answer.body) {
                    let ms = event["ms"].as_u64().unwrap();
                    times.push(ms);
                    let key = event.get("group_id").unwrap_or(&event["user_id"]).to_string();
                    let before = last.insert((region, key), ms).unwrap_or(0);
                    prop_assert!(before <= ms);
                }
                prop_assert!(times.is_sorted());
            }
        }
        prop_assert!(!last.is_empty());
    }
}
