//! The examples of Agora's documents, of every year and both languages, as files: what a reader of
//! those documents has before him is read as he would read it, white space and all.
//!
//! The older documents only name the event in their example of an answer (`"events" : [event]`) and
//! show it apart; here it stands in its place. The Chinese example of a channel event lacks a comma
//! in the document, and it lacks it here.

use agora_rtm_bridge::agora::event::NotAnEvent;
use agora_rtm_bridge::agora::{Ending, event, split};
use agora_rtm_bridge::model::{Endpoint, Wholeness};

const USER: &str = "rtmtest_RTM_4852_4857w7%";
const CHANNEL: &str = "example_channel_id";
const LOGIN: i64 = 1_578_027_420_761;
const JOIN: i64 = 1_578_027_418_981;

/// The file's bytes, whatever they are.
macro_rules! fixture {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../fixtures/", $name)).as_slice())
    };
}

/// Reads a file as an answer with one event.
fn check((name, body): (&str, &[u8]), endpoint: Endpoint, expected: (&str, Option<&str>, i64)) {
    let split = split(body);
    assert_eq!(split.result, Some(b"success".as_slice()), "{name}");
    assert_eq!(split.ending, Ending::Closed, "{name}");
    assert_eq!(split.leftover(Wholeness::Whole), None, "{name}");
    let [element] = split.elements[..] else { panic!("{name}: {} elements", split.elements.len()) };
    let event = event::read(endpoint, element).unwrap_or_else(|why| panic!("{name}: {why}"));
    let shown = (&*event.kind, event.channel_id.as_deref(), event.time.as_millis());
    assert_eq!(shown, expected, "{name}");
    assert_eq!(event.user_id, USER, "{name}");
    assert!(event.others.is_empty(), "{name}: {:?}", event.others);
}

#[test]
fn every_example_of_the_documents_is_one_event() {
    let user = ("Login", None, LOGIN);
    let channel = ("Join", Some(CHANNEL), JOIN);
    for fixture in [
        fixture!("agora-en-current-user-events.json"),
        fixture!("agora-en-legacy-user-events.json"),
        fixture!("agora-en-2020-user-events.json"),
        fixture!("agora-zh-2020-user-events.json"),
        fixture!("agora-one-line-user-events.json"),
    ] {
        check(fixture, Endpoint::User, user);
    }
    for fixture in [
        fixture!("agora-en-current-channel-events.json"),
        fixture!("agora-en-legacy-channel-events.json"),
        fixture!("agora-en-2020-channel-events.json"),
    ] {
        check(fixture, Endpoint::Channel, channel);
    }
}

#[test]
fn the_chinese_example_without_a_comma_is_a_dead_letter_and_its_bytes_are_kept() {
    let (name, body) = fixture!("agora-zh-2020-channel-events.json");
    let split = split(body);
    assert_eq!(split.ending, Ending::Closed, "{name}");
    let [element] = split.elements[..] else { panic!("{name}: {} elements", split.elements.len()) };
    assert_eq!(event::read(Endpoint::Channel, element).unwrap_err(), NotAnEvent::NotJson, "{name}");
    let (begin, end) = (element.first_chunk(), element.last_chunk());
    assert_eq!((begin, end), (Some(b"{\n    \"channel_id\""), Some(b"1578027418981\n}")), "{name}");
}
