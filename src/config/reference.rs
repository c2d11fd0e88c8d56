//! Generates the reference page, `config/reference.toml`, from the table of keys.

use std::fs;

use super::fault::quoted;
use super::general::LOG_FORMATS;
use super::kafka::{DELIVERIES, REFUSED};
use super::keys::{Absent, Key, Kind};
use super::table::KEYS;
use super::{keys, load};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/reference.toml");

/// Command that regenerates the page; the test below checks the variable.
const REGENERATE: &str = "REGENERATE=1 cargo test --lib config::reference";

const HEAD: &str = "\
# All keys of agora-rtm-bridge, with their purpose, accepted values and default.
#
# You only need to set the keys whose default doesn't suit you; agora-rtm-bridge.toml in this
# directory is a short example. Every key can also be set in the environment, by the variable named
# here, and the environment takes precedence. There, an array of strings is one comma-separated
# string, or one variable per element: AGORA_RTM_BRIDGE__APPS__0__HOSTS__1. Indices of elements,
# apps and regions start at 0.
#
# Any secret, and any of kafka.options, can be given as NAME_file = \"path\" instead; the file is
# read again whenever the value is used. If systemd sets $CREDENTIALS_DIRECTORY, relative paths are
# resolved against it.
";

fn page() -> String {
    let mut page = format!("{HEAD}#\n# This page is generated: {REGENERATE}\n");
    let mut group = "";
    for key in KEYS {
        let (of, _) = key.name.rsplit_once('.').unwrap_or_default();
        if of != group {
            page.push_str(&head(of));
            group = of;
        }
        page.push_str(&entry(key));
    }
    page
}

fn head(group: &str) -> String {
    let name = group.replace("[]", "");
    match group {
        "apps[].regions[]" => format!("\n# [[{name}]]\n"),
        list if list.ends_with("[]") => format!("\n[[{name}]]\n"),
        _ => format!("\n[{name}]\n"),
    }
}

fn entry(key: &Key) -> String {
    let name = key.name.rsplit('.').next().unwrap_or_default();
    let why = wrapped("# ", key.why);
    if key.kind == Kind::Setting {
        let variable = keys::variable("kafka.options.security.protocol");
        return format!(
            "\n{why}# {variable}\n# \"security.protocol\" = \"plaintext\"\n#\n# Refused:\n{}",
            refused()
        );
    }
    let region = key.name.starts_with("apps[].regions[]");
    let (comment, written, remark) = match key.absent {
        Absent::Default(text) => ("", text, ""),
        Absent::HostName => ("# ", "bridge-0", "; default: the host name"),
        Absent::Computed(text, how) => ("# ", text, how),
        Absent::Required(text) if region => ("# ", text, "; required"),
        Absent::Required(text) => ("", text, "; required, this is an example"),
        Absent::Optional(text) => ("# ", text, "; no default"),
    };
    let variable = keys::variable(key.name);
    let value = toml(key.kind, written);
    format!("\n{why}# {}{remark}. {variable}\n{comment}{name} = {value}\n", kind(key.kind))
}

fn kind(kind: Kind) -> String {
    match kind {
        Kind::Text => "String".to_owned(),
        Kind::Secret => "Secret".to_owned(),
        Kind::Path => "Path".to_owned(),
        Kind::Address => "Address and port".to_owned(),
        Kind::Flag => "true or false".to_owned(),
        Kind::Texts => "Array of strings".to_owned(),
        Kind::Setting => "librdkafka setting".to_owned(),
        Kind::Choice(words) => words.join(" or "),
        Kind::Count(bounds) => format!("Number, {} to {}", bounds.least, bounds.most),
        Kind::Duration(bounds) => format!("Duration, {} to {}", bounds.least, bounds.most),
        Kind::Size(bounds) => format!("Size, {} to {}", bounds.least, bounds.most),
    }
}

fn toml(kind: Kind, text: &str) -> String {
    match kind {
        Kind::Flag | Kind::Count(_) => text.to_owned(),
        Kind::Texts => {
            let elements: Vec<_> = text.split(", ").map(quoted).collect();
            format!("[{}]", elements.join(", "))
        }
        _ => quoted(text),
    }
}

fn refused() -> String {
    let entries = REFUSED
        .iter()
        .map(|(names, why)| wrapped("#   ", &format!("- {}: {why}", names.join(", "))));
    entries.collect()
}

/// A comment wrapped at 100 bytes; all lines but the first begin with `start`.
fn wrapped(start: &str, text: &str) -> String {
    let mut lines = vec!["#".to_owned()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= 100 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("{start}{word}")),
        }
    }
    lines.join("\n") + "\n"
}

/// The page as a user would fill it in: with the credentials uncommented.
fn used(page: &str) -> String {
    page.replace("# customer_id", "customer_id").replace("# customer_secret", "customer_secret")
}

#[test]
fn the_reference_page_is_what_the_table_says() {
    let wanted = page();
    if std::env::var_os("REGENERATE").is_some() {
        fs::write(PAGE, &wanted).unwrap();
    }
    let found = fs::read_to_string(PAGE).unwrap_or_default();
    assert!(found == wanted, "{PAGE} is out of date; run: {REGENERATE}");
}

#[test]
fn the_words_in_the_table_are_those_that_are_read() {
    let words = |name: &str| match KEYS.iter().find(|key| key.name == name).unwrap().kind {
        Kind::Choice(words) => words,
        kind => panic!("{kind:?} is no choice"),
    };
    assert_eq!(words("log.format"), LOG_FORMATS.map(|(word, _)| word));
    assert_eq!(words("kafka.delivery"), DELIVERIES.map(|(word, _)| word));
}

#[test]
fn the_reference_page_says_what_holds_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let shown = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        load(Some(&path), []).unwrap_or_else(|faults| panic!("{faults}")).shown()
    };
    let required = "
        kafka.bootstrap_servers = '127.0.0.1:9092'
        [[apps]]
        app_id = '876922cbca0098dff4323566daa89675'
        auth = { customer_id = 'your-customer-id', customer_secret = 'x' }
    ";
    assert_eq!(shown("reference.toml", &used(&page())), shown("required.toml", required));
}

#[test]
fn every_key_of_the_table_is_shown_when_it_is_set() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("all.toml");
    let all = used(&page())
        .replace("# ca_file = ", &format!("ca_file = {path:?} # "))
        .replace("# client_certificate_file = ", &format!("client_certificate_file = {path:?} # "))
        .replace("# client_key_file = ", &format!("client_key_file = {path:?} # "))
        .replace("# proxy = ", "proxy = ")
        .replace("# proxy_password = ", "proxy_password = ");
    let with_regions = all
        .replace("\nhosts = ", "\n# hosts = ")
        .replace("# [[apps.regions]]", "[[apps.regions]]")
        .replace("# name = ", "name = ")
        .replace("# hosts = [\"https://api-", "hosts = [\"https://api-");
    let with_token = all.replace("\ncustomer_", "\n# customer_").replace("# token =", "token =");
    let with_user = with_token.replace("# user_id =", "user_id =").replace("007…", "006");
    let with_certificate = all
        .replace("\ncustomer_", "\n# customer_")
        .replace("# app_certificate =", "app_certificate =")
        .replace("# user_id =", "user_id =");
    let shown: String = [all, with_regions, with_user, with_certificate]
        .iter()
        .map(|text| {
            fs::write(&path, text).unwrap();
            load(Some(&path), []).unwrap_or_else(|faults| panic!("{faults}")).shown()
        })
        .collect();
    for key in KEYS.iter().filter(|key| key.kind != Kind::Setting) {
        let name = key.name.rsplit('.').next().unwrap();
        assert!(shown.contains(&format!("\n{name} = ")) || shown.starts_with(name), "{name}");
    }
}
