//! `check` as its users run it: each thing that can be amiss, with the words that mend it.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use agora_rtm_bridge::simulator::{AppScript, Script};
use serde_json::Value;

use crate::campaign::disk::SmallDisk;
use crate::real_broker::{LIMIT, stop};
use crate::support::agora::{Agora, Hosts};
use crate::support::consume::Consumer;
use crate::support::judge::judge;
use crate::support::names::Names;
use crate::support::process::Bridge;
use crate::support::{broker, names, process};

/// How `check` ended, and what it printed.
pub(crate) struct Checked {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs it on this configuration, in a data directory of its own.
pub(crate) fn check(config: &str, args: &[&str]) -> Checked {
    let home = names::folder();
    check_in(&home.path().join("data"), home.path(), config, args)
}

fn check_in(data_dir: &Path, home: &Path, config: &str, args: &[&str]) -> Checked {
    let file = home.join("check.toml");
    fs::write(&file, config).expect("a fresh folder can be written to");
    let output = process::command()
        .arg("check")
        .arg("--config")
        .arg(file)
        .args(args)
        .env("AGORA_RTM_BRIDGE__DATA_DIR", data_dir)
        .env("AGORA_RTM_BRIDGE__HTTP__LISTEN", "127.0.0.1:0")
        .stdin(Stdio::null())
        .output()
        .expect("the binary is built");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("results are text");
    Checked { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

// === impl Checked ===

impl Checked {
    /// The lines with this verdict: `ok`, `warning` or `FAILED`.
    pub(crate) fn lines(&self, verdict: &str) -> Vec<&str> {
        self.out.lines().filter(|line| line.starts_with(verdict)).collect()
    }

    /// Expects one failure, which says all of these words.
    pub(crate) fn assert_failed(&self, words: &[&str]) {
        assert_eq!(self.code, Some(1), "{}{}", self.out, self.err);
        let failed = self.lines("FAILED");
        assert_eq!(failed.len(), 1, "{}{}", self.out, self.err);
        for word in words {
            assert!(failed.iter().all(|line| line.contains(word)), "{word}: {failed:?}");
        }
    }

    fn assert_warned(&self, words: &[&str]) {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        let warned = self.lines("warning");
        let all = |line: &&&str| words.iter().all(|word| line.contains(word));
        assert_eq!(warned.iter().filter(all).count(), 1, "{words:?}: {}", self.out);
    }
}

fn agora() -> Agora {
    let apps = vec![AppScript::numbered(0).rates(50.0, 50.0)];
    Agora::start(Script { apps, ..Script::default() })
}

fn config(agora: &Agora, names: &Names) -> String {
    agora.config(names, broker::shared(), Hosts::EachRegion)
}

#[test]
fn what_is_right_is_ok_and_no_event_was_taken_and_no_topic_made() {
    let (agora, names) = (agora(), Names::unique("check"));
    let config = config(&agora, &names);
    for _ in 0..2 {
        let checked = check(&config, &[]);
        assert_eq!(checked.code, Some(0), "{}{}", checked.out, checked.err);
        assert_eq!(checked.lines("FAILED"), [""; 0], "{}", checked.out);
        let missing = checked.out.matches("missing; the start creates it").count();
        assert_eq!(missing, 6, "{}", checked.out);
    }
    assert_eq!(agora.world().ledger().total().delivered, 0);
    let asked = agora.world().ledger().all_requests().asked;
    assert_eq!(asked, 0, "no endpoint of events was asked");
}

#[test]
fn what_is_amiss_with_agora_is_named_with_its_remedy() {
    let (agora, names) = (agora(), Names::unique("check-agora"));
    let config = config(&agora, &names);
    let (app, secret) = {
        let world = agora.world();
        let app = &world.script().apps[0];
        (app.app_id.to_string(), app.customer_secret.clone())
    };
    let foreign = "0123456789abcdef0123456789abcdef";
    check(&config.replace(&secret, "wrong"), &[]).assert_failed(&[
        &app,
        "rejects the credentials (status 401)",
        "Developer Toolkit",
    ]);
    check(&config.replace(&app, foreign), &[]).assert_failed(&[
        foreign,
        "not among the account's 1 projects",
        "correct app_id",
    ]);
    let host = agora.apps(Hosts::InOrder(&[0]));
    let host = host.split("hosts = [\"").nth(1).and_then(|it| it.split('"').next()).unwrap();
    let unknown = config.replace(host, "https://agora.invalid");
    check(&unknown, &[]).assert_failed(&["https://agora.invalid", "check the spelling"]);
    let closed = config.replace(host, "http://127.0.0.1:1");
    check(&closed, &[]).assert_failed(&["127.0.0.1:1", "refused", "firewall"]);
    // Without the Console nobody knows.
    let checked = check(&config.replace(&secret, "wrong"), &["--no-console"]);
    assert_eq!(checked.code, Some(0), "{}", checked.out);
}

#[test]
fn what_is_amiss_with_a_secret_is_named_before_anybody_is_asked() {
    let (agora, names) = (agora(), Names::unique("check-secret"));
    // Kafka has no part in it.
    let config = agora.config(&names, "127.0.0.1:1", Hosts::EachRegion);
    let (id, secret) = {
        let world = agora.world();
        let app = &world.script().apps[0];
        (app.customer_id.clone(), app.customer_secret.clone())
    };
    let home = names::folder();
    let file = home.path().join("secret");
    let by_value = format!("customer_secret = {secret:?}");
    assert!(config.contains(&by_value), "{config}");
    let config = config.replace(&by_value, &format!("customer_secret_file = {file:?}"));
    for (content, verdict, words) in [
        (
            format!("{id}\n{secret}\n"),
            "FAILED",
            "it has 2 lines, and customer_id is in one of them",
        ),
        ("\n".to_owned(), "FAILED", "it is empty"),
        (format!("{id}:{secret}"), "warning", "without customer_id"),
        (format!("\u{feff} {secret}\r\n"), "", ""),
    ] {
        fs::write(&file, content).unwrap();
        let checked = check(&config, &["--no-console"]);
        let of_secret = |line: &&str| line.contains("credentials of");
        let said: Vec<&str> = checked.out.lines().filter(of_secret).collect();
        match (said.as_slice(), words) {
            ([], "") => {}
            ([line], words) => {
                assert!(line.starts_with(verdict) && line.contains(words), "{line}");
                assert!(line.contains(&file.display().to_string()), "{line}");
            }
            _ => panic!("{}{}", checked.out, checked.err),
        }
        assert!(!checked.out.contains(&secret), "{}", checked.out);
    }
    assert_eq!(agora.world().ledger().all_requests().asked, 0);
}

#[test]
fn what_is_amiss_with_topics_is_named_with_its_remedy() {
    let (agora, bootstrap) = (agora(), broker::shared());
    let with = |create: bool, topics: &dyn Fn(&Names)| {
        let names = Names::unique("check-topics");
        topics(&names);
        let config = config(&agora, &names);
        check(
            &config.replace("[kafka.topics]\n", &format!("[kafka.topics]\ncreate = {create}\n")),
            &[],
        )
    };
    let all_but_gaps = |names: &Names| {
        for topic in [&names.user_events, &names.channel_events] {
            broker::create_topic(bootstrap, topic, 3);
        }
        let stamped = ("message.timestamp.type", "LogAppendTime");
        broker::create_topic_with(bootstrap, &names.dead_letter, 1, &[stamped]);
        let pages = [stamped, ("max.message.bytes", "10485760")];
        broker::create_topic_with(bootstrap, &names.pages, 4, &pages);
        let state = [stamped, ("cleanup.policy", "compact")];
        broker::create_topic_with(bootstrap, &names.state, 4, &state);
    };
    let missing = with(false, &all_but_gaps);
    missing.assert_failed(&[".gaps: missing", "LogAppendTime, or set kafka.topics.create to true"]);
    assert_eq!(missing.lines("warning"), [""; 0], "{}", missing.out);
    with(true, &|names| broker::create_topic(bootstrap, &names.state, 4)).assert_failed(&[
        ".state",
        "cleanup.policy is delete",
        "set cleanup.policy=compact",
    ]);
    with(false, &|names| {
        all_but_gaps(names);
        broker::create_topic(bootstrap, &names.gaps, 1);
    })
    .assert_warned(&[".gaps", "CreateTime", "set message.timestamp.type=LogAppendTime"]);
    with(true, &|names| broker::create_topic(bootstrap, &names.pages, 3)).assert_warned(&[
        ".pages",
        "3 partitions",
        "the start adds the others",
    ]);
    with(true, &|names| broker::create_topic(bootstrap, &names.pages, 5)).assert_warned(&[
        ".pages",
        "5 partitions",
        "the first 4 are used",
    ]);
    with(true, &|names| {
        let day = [("retention.ms", "3600000")];
        broker::create_topic_with(bootstrap, &names.user_events, 3, &day);
    })
    .assert_warned(&[".user-events", "retention.ms is 3600000", "172800000 or more"]);
}

#[test]
fn what_is_amiss_with_this_machine_is_named_with_its_remedy() {
    let (agora, names) = (agora(), Names::unique("check-machine"));
    let config = config(&agora, &names);
    let home = names::folder();
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    check_in(&file, home.path(), &config, &[]).assert_failed(&["not a directory", "set data_dir"]);
    check(&format!("journal.max_size = \"1024TiB\"\n{config}"), &[])
        .assert_warned(&["data_dir", "lower journal.max_size"]);
    // Where a secret can't be read nothing is looked at.
    let secret = format!("customer_secret = {:?}", agora.world().script().apps[0].customer_secret);
    let unreadable = config.replace(&secret, "customer_secret_file = \"/nowhere/secret\"");
    let checked = check(&unreadable, &[]);
    assert_eq!(checked.code, Some(78), "{}", checked.err);
    assert!(checked.err.contains("/nowhere/secret") && checked.err.contains("No such file"));
    let json: Value = serde_json::from_str(&check(&unreadable, &["--json"]).out).unwrap();
    assert_eq!(json["ok"], false);
    assert_eq!(json["findings"][0]["verdict"], "failed");
}

#[test]
fn a_full_disk_is_named_with_its_remedy() {
    if let Err(why) = SmallDisk::try_out() {
        // What is said of numbers is tested without a disk, where it is decided.
        eprintln!("no disk can be mounted here: {why}");
        return;
    }
    let (agora, names, home) = (agora(), Names::unique("check-disk"), names::folder());
    let data_dir = home.path().join("data");
    let disk = SmallDisk::mount(&data_dir).expect("it was tried out");
    disk.fill();
    check_in(&data_dir, home.path(), &config(&agora, &names), &[]).assert_failed(&[
        "data_dir",
        "disk is full: 0 B free",
        "make room",
    ]);
}

#[test]
fn a_data_directory_in_use_is_named_and_the_bridge_does_not_notice() {
    let (agora, names) = (agora(), Names::unique("check-in-use"));
    let config = config(&agora, &names);
    let mut bridge = Bridge::start(&config);
    bridge.wait_ready();
    let home = names::folder();
    for _ in 0..2 {
        let checked = check_in(&bridge.data_dir(), home.path(), &config, &[]);
        checked.assert_failed(&["in use by another process", "a second bridge needs another"]);
    }
    let run_beside = |data_dir: &Path, listen: &str, expected: &[&str]| {
        let second = process::command()
            .args(["run", "--config"])
            .arg(home.path().join("check.toml"))
            .env("AGORA_RTM_BRIDGE__DATA_DIR", data_dir)
            .env("AGORA_RTM_BRIDGE__HTTP__LISTEN", listen)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&second.stderr);
        assert_eq!(second.status.code(), Some(1), "{said}");
        assert!(expected.iter().all(|words| said.contains(words)), "{said}");
    };
    let holder = format!("is in use by process {}", bridge.id());
    let port = bridge.address().expect("it listens").to_string();
    let own = home.path().join("data");
    run_beside(&bridge.data_dir(), "127.0.0.1:0", &[&holder, "give each its own"]);
    run_beside(&own, &port, &["(http.listen)", "configure another"]);
    // The same configuration, started twice.
    run_beside(&bridge.data_dir(), &port, &[&holder, "give each its own", "(http.listen)"]);
    assert_eq!(bridge.get("/ready").status, 200);
    stop(&mut bridge);
}

#[test]
fn what_check_asked_for_is_published_by_the_next_run() {
    let (agora, names) = (agora(), Names::unique("check-ask"));
    let config = config(&agora, &names);
    agora.wait_for_moment(Duration::from_secs(1));
    let mut asked = String::new();
    let mut bridge = Bridge::start_on(&config, |data_dir| {
        let home = names::folder();
        let checked = check_in(data_dir, home.path(), &config, &["--ask"]);
        assert_eq!(checked.code, Some(0), "{}{}", checked.out, checked.err);
        asked = checked.out;
    });
    assert_eq!(asked.matches("ok      asked ").count(), 2, "{asked}");
    assert!(asked.contains(" events, from "), "{asked}");
    bridge.wait_ready();
    let consumer = Consumer::start(broker::shared(), &names.published());
    agora.come_to_rest(&[0], LIMIT);
    stop(&mut bridge);
    let verdict = judge(&names, agora.events(), &consumer.finish());
    verdict.assert_complete();
    verdict.assert_in_order();
}

#[test]
fn what_is_in_force_is_shown_with_its_origins_and_without_secrets() {
    let (agora, names) = (agora(), Names::unique("check-config"));
    let shown = check(&config(&agora, &names), &["--print-config"]);
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    for line in [
        "customer_secret = \"***\"  # ",
        "listen = \"127.0.0.1:0\"  # AGORA_RTM_BRIDGE__HTTP__LISTEN",
        "shutdown_grace = \"1m 30s\"  # ",
        "delivery = \"exactly-once\"  # default",
    ] {
        assert!(shown.out.contains(line), "{line}: {}", shown.out);
    }
    assert!(!shown.out.contains(&agora.world().script().apps[0].customer_secret));
}

#[test]
fn ten_mistakes_are_named_in_one_run_each_with_its_line() {
    // A mistake a line, but for the heads of groups.
    let config = "\
data_dir = 7
shutdown_grace = \"20\"
log.level = \"inof\"
http.listen = \"9464\"
journal.max_size = \"4 parsecs\"
[kafka]
bootstrap_server = \"kafka:9092\"
group = \"a b\"
delivery = \"twice\"
[[apps]]
app_id = \"a b\"
hosts = [\"ftp://agora.example\"]
requests_per_second = \"many\"
";
    let home = names::folder();
    let file = home.path().join("ten.toml");
    fs::write(&file, config).unwrap();
    for command in ["run", "check"] {
        let output = process::command().args([command, "--config"]).arg(&file).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{said}");
        for line in [1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13] {
            let start = format!("ten.toml:{line}: ");
            assert_eq!(said.matches(&start).count(), 1, "line {line}: {said}");
        }
        assert!(said.contains("did you mean kafka.bootstrap_servers?"), "{said}");
    }
}
