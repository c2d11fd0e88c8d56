//! Tests of [`load`], with the cases as data.

use std::fs;

use super::*;

use mistakes::RIGHT;

mod mistakes;

/// The minimal configuration, from the environment alone.
const MINIMAL: [(&str, &str); 4] = [
    ("AGORA_RTM_BRIDGE__KAFKA__BOOTSTRAP_SERVERS", "kafka:9092"),
    ("AGORA_RTM_BRIDGE__APPS__0__APP_ID", "0123"),
    ("AGORA_RTM_BRIDGE__APPS__0__AUTH__CUSTOMER_ID", "me"),
    ("AGORA_RTM_BRIDGE__APPS__0__AUTH__CUSTOMER_SECRET", "hunter2"),
];

fn load_both(text: &str, variables: &[(&str, &str)]) -> Result<Settings, Faults> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bridge.toml");
    fs::write(&file, text).unwrap();
    load(Some(&file), owned(variables))
}

fn owned(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn minimal(more: &[(&str, &str)]) -> Result<Settings, Faults> {
    load(None, owned(&[&MINIMAL, more].concat()))
}

/// The faults as `line: key: …` or `VARIABLE: key: …`, without the name of the file.
fn lines(result: Result<Settings, Faults>) -> Vec<String> {
    let faults = result.expect_err("there is a fault").to_string();
    let bare = |line: &str| match line.split_once("bridge.toml:") {
        Some((_, rest)) => rest.to_owned(),
        None => line.to_owned(),
    };
    faults.lines().map(bare).collect()
}

#[test]
fn what_is_right_is_taken_as_written() {
    let settings = load_both(RIGHT, &[]).unwrap();
    assert_eq!(settings.shutdown_grace, Duration::from_secs(20));
    assert_eq!(settings.journal.max_size, 4 << 30);
    assert_eq!(settings.kafka.topics.page_retention, Duration::from_secs(86_400));
    assert!(matches!(&settings.kafka.options["linger.ms"], OptionValue::Plain(v) if v == "5"));
    assert!(matches!(&settings.kafka.options["sasl.password"], OptionValue::Secret(_)));
    let [first, second, third] = settings.apps.as_slice() else { panic!("three were given") };
    assert_eq!(first.regions[0].name.as_str(), "default");
    assert_eq!(first.regions[0].hosts[1].as_str(), "https://api.sd-rtn.com");
    assert_eq!(second.regions[1].name.as_str(), "ap");
    assert!(matches!(&second.auth, Auth::Token { token, .. } if token.file().is_none()));
    let Auth::Minted { user_id, form, life, .. } = &third.auth else { panic!("a certificate") };
    assert_eq!((user_id.as_str(), *form), ("bridge", TokenForm::AccessToken2));
    assert_eq!(*life, Duration::from_secs(3_600));
}

#[test]
fn one_app_comes_wholly_from_the_environment() {
    let settings = minimal(&[
        ("AGORA_RTM_BRIDGE__APPS__0__HOSTS", "https://a.example, https://b.example"),
        ("AGORA_RTM_BRIDGE__APPS__0__REQUESTS_PER_SECOND", "7"),
        ("AGORA_RTM_BRIDGE__KAFKA__OPTIONS__SECURITY_PROTOCOL", "ssl"),
        ("AGORA_RTM_BRIDGE__KAFKA__TOPICS__CREATE", "false"),
        // Kubernetes sets variables like this one for a service of this name.
        ("AGORA_RTM_BRIDGE_PORT_9464_TCP", "tcp://10.0.0.1:9464"),
        ("PATH", "/bin"),
    ])
    .unwrap();
    let [app] = settings.apps.as_slice() else { panic!("one app was given") };
    let hosts: Vec<_> = app.regions[0].hosts.iter().map(Host::as_str).collect();
    assert_eq!(hosts, ["https://a.example", "https://b.example"]);
    assert_eq!((app.app_id.as_str(), app.requests_per_second.get()), ("0123", 7));
    assert!(!settings.kafka.topics.create);
    let protocol = &settings.kafka.options["security.protocol"];
    assert!(matches!(protocol, OptionValue::Plain(value) if value == "ssl"));
    assert!(!settings.instance.is_empty(), "the machine has a name");
}

#[test]
fn the_environment_wins_over_the_file_element_by_element() {
    let settings = load_both(
        RIGHT,
        &[
            ("AGORA_RTM_BRIDGE__SHUTDOWN_GRACE", "1m"),
            ("AGORA_RTM_BRIDGE__APPS__0__HOSTS__1", "https://b.example"),
            ("AGORA_RTM_BRIDGE__APPS__1__REGIONS__1__HOSTS", "https://c.example"),
            ("AGORA_RTM_BRIDGE__KAFKA__OPTIONS__LINGER_MS", "6"),
        ],
    )
    .unwrap();
    assert_eq!(settings.shutdown_grace, Duration::from_secs(60));
    let hosts = |app: usize, region: usize| settings.apps[app].regions[region].hosts.as_slice();
    assert_eq!(hosts(0, 0)[0].as_str(), "https://api.agora.io");
    assert_eq!(hosts(0, 0)[1].as_str(), "https://b.example");
    assert_eq!(hosts(1, 0)[0].as_str(), "https://eu.example");
    assert_eq!(hosts(1, 1)[0].as_str(), "https://c.example");
    assert!(matches!(&settings.kafka.options["linger.ms"], OptionValue::Plain(v) if v == "6"));
    assert_eq!(settings.kafka.group, "bridge");
}

#[test]
fn values_of_the_environment_stay_strings() {
    // A name may look like a number, a boolean or a float.
    for name in ["0010", "true", "1e3"] {
        let settings = minimal(&[("AGORA_RTM_BRIDGE__KAFKA__GROUP", name)]).unwrap();
        assert_eq!(settings.kafka.group, name);
    }
}

#[test]
fn a_mistake_in_the_environment_is_named_with_its_variable() {
    for (name, value, expected) in [
        (
            "KAFKA__BOOTSTRAP_SERVER",
            "x",
            "is unknown; did you mean AGORA_RTM_BRIDGE__KAFKA__BOOTSTRAP_SERVERS?",
        ),
        ("APPS__0__APP_IDD", "x", "is unknown; did you mean AGORA_RTM_BRIDGE__APPS__0__APP_ID?"),
        ("APPS__10000__APP_ID", "x", "is unknown"),
        ("APPS", "x", "apps: is a group of keys"),
        ("KAFKA", "x", "kafka: is a group of keys"),
        ("", "x", "is unknown"),
        (
            "apps__0__app_id",
            "x",
            "apps[0].app_id: is also set by AGORA_RTM_BRIDGE__APPS__0__APP_ID",
        ),
        ("APPS__0__ENDPOINTS__1", "channel_events", "apps[0].endpoints[0]: is missing"),
        ("KAFKA__GROUP__0", "a", "kafka.group[0]: is unknown"),
        ("APPS__2__APP_ID", "x", "apps[1]: is missing: indices start at 0"),
        ("KAFKA__OPTIONS__SASL_PASSWORD", "", "kafka.options.sasl.password: is empty"),
        ("APPS__0__REQUESTS_PER_SECOND", "many", "must be a whole number"),
    ] {
        let name = format!("AGORA_RTM_BRIDGE__{name}");
        let found = lines(minimal(&[(&name, value)]));
        assert!(found.iter().any(|line| line.contains(expected)), "{name}: {found:#?}");
    }
}

#[test]
fn an_array_is_not_given_whole_and_by_element() {
    let found = lines(minimal(&[
        ("AGORA_RTM_BRIDGE__APPS__0__HOSTS", "https://a.example"),
        ("AGORA_RTM_BRIDGE__APPS__0__HOSTS__0", "https://b.example"),
    ]));
    let start = "AGORA_RTM_BRIDGE__APPS__0__HOSTS__0: apps[0].hosts[0]: the whole array is also \
                 set by AGORA";
    assert!(found[0].starts_with(start), "{found:#?}");
}

#[test]
fn a_file_that_is_no_toml_is_a_fault_beside_those_of_the_environment() {
    let found = lines(load_both("a = 1\nb = hunter2\n", &[("AGORA_RTM_BRIDGE__X", "1")]));
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("2: is not TOML: "), "{found:#?}");
    let absent = load(Some(Path::new("/nowhere/bridge.toml")), []).unwrap_err().to_string();
    assert!(absent.starts_with("/nowhere/bridge.toml can't be read: "), "{absent}");
}

#[test]
fn a_secret_file_is_found_among_systemds_credentials_and_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agora");
    fs::write(&path, "old\n").unwrap();
    let directory = ("CREDENTIALS_DIRECTORY", dir.path().to_str().unwrap());
    let file = ("AGORA_RTM_BRIDGE__APPS__0__AUTH__CUSTOMER_SECRET_FILE", "agora");
    let settings = load(None, owned(&[&MINIMAL[..3], &[directory, file]].concat())).unwrap();
    let Auth::Basic { customer_secret, .. } = &settings.apps[0].auth else {
        panic!("Basic was given")
    };
    assert_eq!(customer_secret.reveal().unwrap(), "old");
    fs::write(&path, "new\n").unwrap();
    assert_eq!(customer_secret.reveal().unwrap(), "new");

    let absent = ("AGORA_RTM_BRIDGE__APPS__0__AUTH__CUSTOMER_SECRET_FILE", "absent");
    let found = lines(load(None, owned(&[&MINIMAL[..3], &[directory, absent]].concat())));
    assert!(found[0].contains("= \"absent\": failed to read the secret file"), "{found:#?}");
    assert!(found[0].contains("No such file"), "{found:#?}");
}

#[test]
fn what_is_in_the_secret_file_of_an_app_is_no_fault_of_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    let file = path.to_str().unwrap();
    let by_value = "customer_secret = \"hunter2\"";
    let by_file = RIGHT.replacen(by_value, &format!("customer_secret_file = {file:?}"), 1);
    let token = RIGHT.replacen("token = \"007hunter2\"", &format!("token_file = {file:?}"), 1);
    let certificate = RIGHT.replacen(
        "app_certificate = \"cafehunter2\"",
        &format!("app_certificate_file = {file:?}"),
        1,
    );
    for content in [&b""[..], b"\xff", b"one\ntwo", &[b'x'; 70_000], b"{\"token\": \"007\"}"] {
        fs::write(&path, content).unwrap();
        for text in [&by_file, &token, &certificate] {
            assert!(text.contains(file));
            load_both(text, &[]).unwrap();
        }
        // Kafka's password, in contrast, has to be valid at the start.
        let name = "AGORA_RTM_BRIDGE__KAFKA__OPTIONS__SASL_PASSWORD_FILE";
        let is_text = content.is_ascii() && !content.is_empty() && content.len() < 70_000;
        assert_eq!(load_both(RIGHT, &[(name, file)]).is_ok(), is_text, "{content:?}");
    }
    for (right, wrong) in [("\"007hunter2", "\"007 hunter2"), ("\"cafe", "\"cafe ")] {
        load_both(&RIGHT.replacen(right, wrong, 1), &[]).unwrap();
    }
}

#[test]
fn a_secret_has_one_source_and_the_environment_wins() {
    let with_file =
        RIGHT.replace("\"sasl.password\"", "\"sasl.password_file\" = \"x\"\n\"sasl.password\"");
    let found = lines(load_both(&with_file, &[]));
    assert!(found[0].contains("sasl.password_file = \"x\": can't be combined with"), "{found:#?}");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("password");
    fs::write(&path, "hunter3").unwrap();
    let password = |text: &str, name: &str, value: &str| match &load_both(text, &[(name, value)])
        .unwrap()
        .kafka
        .options["sasl.password"]
    {
        OptionValue::Secret(secret) => secret.reveal().unwrap(),
        OptionValue::Plain(_) => panic!("a password is a secret"),
    };
    let name = "AGORA_RTM_BRIDGE__KAFKA__OPTIONS__SASL_PASSWORD";
    assert_eq!(password(&with_file, name, "env"), "env");
    let (file_name, file) = (format!("{name}_FILE"), path.to_str().unwrap());
    assert_eq!(password(RIGHT, &file_name, file), "hunter3");
}

#[test]
fn a_secret_is_shown_nowhere() {
    // In its proper place:
    let settings = load_both(RIGHT, &[("AGORA_RTM_BRIDGE__AGORA__PROXY", "http://me:hunter2@p")]);
    let settings = settings.unwrap();
    let shown = format!("{settings:?} {settings:#?} {}", settings.shown());
    assert!(!shown.contains("hunter2"), "{shown}");
    // In the wrong place, or in a faulty value:
    for (right, wrong) in [
        ("app_certificate =", "app_certifcate ="),
        ("token = \"007hunter2\"", "token = \"006hunter2\""),
        ("token = \"007hunter2\"", "token = [\"hunter2\"]"),
        ("token = \"007hunter2\"", "tokn = \"hunter2\""),
        ("token = \"007hunter2\"", "token = hunter2"),
        ("token = \"007hunter2\"", "token = \"hunter2"),
        ("[apps.auth]\ntoken = \"007hunter2\"", "auth = \"hunter2\""),
        ("token = \"007hunter2\"", "token = { hunter2 = \"hunter2\" }"),
        ("\"sasl.password\"", "\"sasl.pasword\" = [\"hunter2\"]\n\"sasl.password\""),
        ("\"sasl.password\"", "\"SASL.password\""),
        ("[agora]", "proxy = \"hunter2\"\n[agora]"),
        ("[agora]", "[agora]\nproxy = \"ftp://me:hunter2@proxy\""),
        ("https://api.agora.io", "https://me:hunter2@api.agora.io"),
    ] {
        let faults = load_both(&RIGHT.replacen(right, wrong, 1), &[]).unwrap_err();
        let shown = format!("{faults} {faults:?}");
        let named = shown.replace("auth.token.hunter2", "");
        assert!(!named.contains("hunter2"), "{wrong}: {shown}");
    }
}

#[test]
fn what_is_shown_is_what_is_in_force() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), "hunter2").unwrap();
    let text = RIGHT.replace(
        "customer_secret = \"hunter2\"",
        &format!("customer_secret_file = {:?}", secret.path()),
    );
    let shown =
        load_both(&text, &[("AGORA_RTM_BRIDGE__POLL__LONGEST_INTERVAL", "3s")]).unwrap().shown();
    assert!(shown.contains("longest_interval = \"3s\""), "{shown}");
    assert!(shown.contains("\"sasl.password\" = \"***\""), "{shown}");
    assert_eq!(load_both(&shown, &[]).unwrap().shown(), shown);
}

#[test]
fn each_value_is_shown_with_where_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let (file, password) = (dir.path().join("bridge.toml"), dir.path().join("password"));
    fs::write(&file, RIGHT).unwrap();
    fs::write(&password, "hunter2").unwrap();
    let variables = [
        ("AGORA_RTM_BRIDGE__POLL__LONGEST_INTERVAL", "3s"),
        ("AGORA_RTM_BRIDGE__APPS__1__REGIONS__0__HOSTS__0", "https://c.example"),
        ("AGORA_RTM_BRIDGE__KAFKA__OPTIONS__SASL_PASSWORD_FILE", password.to_str().unwrap()),
    ];
    let (settings, origins) = load_with_origins(Some(&file), owned(&variables)).unwrap();
    let shown = settings.shown_with(&origins);
    let line = |start: &str| {
        let found = shown.lines().find(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("no {start} in\n{shown}")).replace("bridge.toml", "")
    };
    assert!(line("data_dir").ends_with("/:2"), "{shown}");
    assert!(line("longest").ends_with("\"3s\"  # AGORA_RTM_BRIDGE__POLL__LONGEST_INTERVAL"));
    assert!(
        line("hosts = [\"https://c").ends_with("# AGORA_RTM_BRIDGE__APPS__1__REGIONS__0__HOSTS__0")
    );
    assert!(line("\"sasl.password_file\"").ends_with("KAFKA__OPTIONS__SASL_PASSWORD_FILE"));
    assert!(line("page_partitions").ends_with("# default"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
    assert_eq!(load_both(&shown, &[]).unwrap().shown(), settings.shown());
}

#[test]
fn the_example_works_against_the_simulator() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/config/agora-rtm-bridge.toml");
    let settings = load(Some(Path::new(example)), []).unwrap();
    let [app] = settings.apps.as_slice() else { panic!("the example has one app") };
    assert_eq!(app.app_id.as_str(), "876922cbca0098dff4323566daa89675");
    assert_eq!(app.regions[0].hosts[0].as_str(), "http://127.0.0.1:8190");
}
