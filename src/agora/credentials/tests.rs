//! What requests carry, and what a refusal changes.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::config::TokenForm;

const APP_ID: &str = "876922cbca0098dff4323566daa89675";
const CERTIFICATE: &str = "5CFd2fd1755d40ecb72977518be15d3b";
const HOUR: Duration = Duration::from_secs(3_600);
const HOST: &str = "api.agora.io";

fn credentials(auth: Auth) -> Credentials {
    Credentials::new(AppId::new(APP_ID), auth, 1)
}

fn minted(form: TokenForm) -> Credentials {
    let certificate = Secret::from_value(CERTIFICATE);
    credentials(Auth::Minted { certificate, user_id: "bridge".to_owned(), form, life: HOUR })
}

fn from_file(path: &Path) -> Credentials {
    credentials(Auth::Token { token: Secret::from_file(path), user_id: None })
}

/// Moments of a machine whose clock is right.
struct Time(Moment);

impl Time {
    fn begin() -> Self {
        let wall = Timestamp::from_millis(1_700_000_000_000);
        Self(Moment { wall, monotonic: Instant::now() })
    }

    fn after(&self, seconds: u64) -> Moment {
        let wait = Duration::from_secs(seconds);
        Moment { wall: self.0.wall.after(wait), monotonic: self.0.monotonic + wait }
    }
}

fn token_of(proof: &Proof) -> token::Token {
    let token = proof.headers.iter().find_map(|(name, value)| match *name {
        "authorization" => value.strip_prefix("agora token="),
        "x-agora-token" => Some(value.as_str()),
        _ => None,
    });
    token::read(token.unwrap()).unwrap()
}

fn check(auth: Auth, expected: &[(&str, &str)]) {
    let proof = credentials(auth).proof(Time::begin().0).unwrap();
    let headers: Vec<(&str, &str)> =
        proof.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(headers, expected);
}

#[test]
fn each_form_has_its_headers() {
    // RFC 7617, section 2.
    let basic = Auth::Basic {
        customer_id: "Aladdin".to_owned(),
        customer_secret: Secret::from_value("open sesame"),
    };
    check(basic, &[("authorization", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")]);
    let token = |token: &str, user_id: Option<&str>| Auth::Token {
        token: Secret::from_value(token),
        user_id: user_id.map(str::to_owned),
    };
    check(token("007eJx", Some("u")), &[("authorization", "agora token=007eJx")]);
    check(token("006abc", Some("u")), &[("x-agora-token", "006abc"), ("x-agora-uid", "u")]);
    check(token("else", None), &[("x-agora-token", "else")]);
}

#[test]
fn a_token_made_here_lets_its_user_in_for_as_long_as_configured() {
    let time = Time::begin();
    for form in [TokenForm::AccessToken2, TokenForm::AccessToken] {
        let mut credentials = minted(form);
        let proof = credentials.proof(time.0).unwrap();
        let token = token_of(&proof);
        assert!(token.form == form && token.app_id == APP_ID && token.lets_in("bridge"));
        assert!(token.is_signed_with(CERTIFICATE, "bridge"));
        assert_eq!(token.issued_at, time.0.wall);
        assert_eq!(token.ends_at, Some(time.0.wall.after(HOUR)));
        assert_eq!(credentials.token_end().unwrap().at, token.ends_at);
        let user = proof.headers.iter().find(|(name, _)| *name == "x-agora-uid");
        assert_eq!(user.is_some(), form == TokenForm::AccessToken);
    }
}

#[test]
fn a_token_made_here_is_renewed_long_before_its_end_and_not_by_all_at_once() {
    let time = Time::begin();
    let renewed_after = |seed: u64| {
        let auth = minted(TokenForm::AccessToken2).auth;
        let mut credentials = Credentials::new(AppId::new(APP_ID), auth, seed);
        let first = credentials.proof(time.0).unwrap().edition;
        (0..3_600).find(|s| credentials.proof(time.after(*s)).unwrap().edition != first).unwrap()
    };
    let renewals: Vec<u64> = (0..20).map(renewed_after).collect();
    assert!(renewals.iter().all(|it| (1_800..=2_520).contains(it)), "{renewals:?}");
    assert!(renewals.iter().max() > renewals.iter().min().map(|it| it + 200).as_ref());
}

#[test]
fn a_clock_that_steps_or_stands_still_renews_a_token() {
    let time = Time::begin();
    let moment = |wall: Timestamp, seconds| Moment { wall, ..time.after(seconds) };
    for (case, later, renewed) in [
        ("the machine slept", moment(time.0.wall.after(HOUR), 10), true),
        ("the clock was set back, and the token is old", moment(time.0.wall, 3_000), true),
        ("the clock was set back by an hour", moment(time.0.wall.before(HOUR), 10), true),
        ("the clock was set back by seconds", moment(time.0.wall.before(HOUR / 600), 10), false),
        ("nothing", time.after(60), false),
    ] {
        let mut credentials = minted(TokenForm::AccessToken2);
        let first = credentials.proof(time.0).unwrap().edition;
        assert_eq!(credentials.proof(later).unwrap().edition != first, renewed, "{case}");
    }
}

#[test]
fn an_accepted_token_that_is_refused_is_renewed_and_the_next_one_sooner() {
    let time = Time::begin();
    let mut credentials = minted(TokenForm::AccessToken2);
    let first = credentials.proof(time.0).unwrap().edition;
    assert!(credentials.accepted(first, HOST));
    assert_eq!(credentials.refused(first, HOST, time.after(100).monotonic), Refused::Outdated);
    let second = credentials.proof(time.after(100)).unwrap().edition;
    assert_ne!(first, second);
    // Two requests carried the first one.
    assert_eq!(credentials.refused(first, HOST, time.after(101).monotonic), Refused::Outdated);
    assert!(!credentials.accepted(first, HOST));
    assert_eq!(credentials.proof(time.after(149)).unwrap().edition, second);
    assert_ne!(credentials.proof(time.after(170)).unwrap().edition, second, "they live for 100 s");
}

#[test]
fn a_second_fresh_token_that_is_refused_is_the_last() {
    let time = Time::begin();
    let mut credentials = minted(TokenForm::AccessToken2);
    let refuse = |credentials: &mut Credentials| {
        let edition = credentials.proof(time.0).unwrap().edition;
        credentials.refused(edition, HOST, time.0.monotonic)
    };
    assert_eq!(refuse(&mut credentials), Refused::Outdated);
    assert_eq!(refuse(&mut credentials), Refused::ForGood);
    assert_eq!(refuse(&mut credentials), Refused::ForGood, "a third token is no better");
    let edition = credentials.proof(time.0).unwrap().edition;
    assert!(credentials.accepted(edition, HOST));
    assert_eq!(refuse(&mut credentials), Refused::Outdated, "it was accepted in between");
}

#[test]
fn what_was_made_elsewhere_is_refused_for_good_until_it_changes() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("token");
    fs::write(&path, "first\n").unwrap();
    let (time, mut credentials) = (Time::begin(), from_file(&path));
    let first = credentials.proof(time.0).unwrap().edition;
    assert_eq!(credentials.refused(first, HOST, time.0.monotonic), Refused::ForGood);
    assert!(!credentials.look(time.0.monotonic));
    fs::write(&path, "second\n").unwrap();
    assert!(credentials.look(time.0.monotonic));
    assert_eq!(credentials.refused(first, HOST, time.0.monotonic), Refused::Outdated);
    assert_eq!(credentials.proof(time.0).unwrap().headers[0].1, "second");
}

/// The way Kubernetes updates a secret: the link to a folder is replaced, so all files change at
/// the same moment.
fn swap(volume: &Path, version: &str, token: &str) {
    fs::create_dir(volume.join(version)).unwrap();
    fs::write(volume.join(version).join("token"), token).unwrap();
    std::os::unix::fs::symlink(version, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

#[test]
fn a_file_is_followed_through_a_rename_and_through_a_swap_of_links() {
    let dir = TempDir::new().unwrap();
    let (time, renamed) = (Time::begin(), dir.path().join("renamed"));
    let header = |it: &mut Credentials| it.proof(time.0).unwrap().headers.remove(0).1;

    fs::write(&renamed, "one").unwrap();
    let mut credentials = from_file(&renamed);
    assert_eq!(header(&mut credentials), "one");
    fs::write(dir.path().join("next"), "two").unwrap();
    fs::rename(dir.path().join("next"), &renamed).unwrap();
    assert_eq!(header(&mut credentials), "two");

    swap(dir.path(), "..2026_01", "three");
    std::os::unix::fs::symlink("..data/token", dir.path().join("token")).unwrap();
    let mut credentials = from_file(&dir.path().join("token"));
    assert_eq!(header(&mut credentials), "three");
    swap(dir.path(), "..2026_02", "four");
    fs::remove_dir_all(dir.path().join("..2026_01")).unwrap();
    assert_eq!(header(&mut credentials), "four");
}

#[test]
fn while_a_file_cannot_be_read_its_last_content_is_used() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("token");
    let (time, mut credentials) = (Time::begin(), from_file(&path));
    let never_read = credentials.proof(time.0).unwrap_err().to_string();
    assert!(never_read.starts_with("read apps.auth.token_file (/"), "{never_read}");
    assert!(never_read.ends_with("): No such file or directory (os error 2)"), "{never_read}");
    fs::write(&path, "one").unwrap();
    let first = credentials.proof(time.0).unwrap().edition;
    fs::write(&path, "").unwrap();
    assert_eq!(credentials.proof(time.after(1)).unwrap().edition, first);
    assert_eq!(credentials.proof(time.after(2)).unwrap().headers[0].1, "one");
    let (since, error) = credentials.unreadable().unwrap();
    assert_eq!(since, time.after(1).monotonic);
    assert!(error.to_string().ends_with("it is empty"), "{error}");
    fs::write(&path, "one").unwrap();
    assert_eq!(credentials.proof(time.after(3)).unwrap().edition, first, "nothing changed");
    assert!(credentials.unreadable().is_none());
}

#[test]
fn what_can_be_no_secret_is_not_sent_and_is_used_as_soon_as_it_is_corrected() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("token");
    fs::write(&path, "two\nlines\n").unwrap();
    let (time, mut credentials) = (Time::begin(), from_file(&path));
    let error = credentials.proof(time.0).unwrap_err().to_string();
    assert!(error.starts_with("use apps.auth.token_file (/"), "{error}");
    assert!(error.ends_with("): it has 2 lines: a token is one line"), "{error}");
    fs::write(&path, "\u{feff}one \r\n").unwrap();
    let first = credentials.proof(time.after(1)).unwrap();
    assert_eq!(first.headers[0].1, "one");
    // A mistake at run time costs nothing while Agora still accepts the previous secret.
    fs::write(&path, "agora token=two").unwrap();
    assert_eq!(credentials.proof(time.after(2)).unwrap().edition, first.edition);
    let (since, error) = credentials.unreadable().unwrap();
    assert_eq!(since, time.after(2).monotonic);
    assert!(error.to_string().contains("beginning of a header"), "{error}");
    fs::write(&path, "two").unwrap();
    assert_eq!(credentials.proof(time.after(3)).unwrap().headers[0].1, "two");
    assert!(credentials.unreadable().is_none());
}

#[test]
fn a_secret_is_suspected_until_agora_takes_it_or_it_is_corrected() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("secret");
    let auth =
        Auth::Basic { customer_id: "me".to_owned(), customer_secret: Secret::from_file(&path) };
    let (time, mut credentials) = (Time::begin(), credentials(auth));
    let mut look = |secret: &str| {
        fs::write(&path, secret).unwrap();
        let edition = credentials.proof(time.0).unwrap().edition;
        let suspicion = credentials.suspicion();
        assert_eq!(
            suspicion.as_ref().is_some_and(|said| credentials.remedy() == *said),
            suspicion.is_some()
        );
        (edition, suspicion)
    };
    let (_, said) = look("me:hunter2");
    let said = said.unwrap();
    assert!(said.starts_with("apps.auth.customer_secret_file (/"), "{said}");
    assert!(
        said.ends_with(
            ") contains a colon or customer_id: give only the customer secret, without customer_id"
        ),
        "{said}"
    );
    assert!(!said.contains("hunter2"), "{said}");
    assert_eq!(look("hunter2").1, None);
    let (edition, said) = look("hunt:er2");
    assert!(said.is_some());
    assert!(credentials.accepted(edition, HOST));
    assert_eq!(credentials.suspicion(), None, "Agora accepted it");
}

#[test]
fn the_end_of_a_token_is_read_where_it_can_be() {
    let end = |token: &str| {
        let token = Secret::from_value(token);
        let mut credentials = credentials(Auth::Token { token, user_id: Some("u".to_owned()) });
        credentials.proof(Time::begin().0).unwrap();
        credentials.token_end().unwrap().at
    };
    for form in [TokenForm::AccessToken2, TokenForm::AccessToken] {
        let issued_at = Timestamp::from_millis(1_700_000_000_000);
        let (certificate, salt, life) = (CERTIFICATE, 1, HOUR);
        let (app_id, user_id) = (APP_ID, "u");
        let order = token::Order { form, app_id, certificate, user_id, issued_at, life, salt };
        assert_eq!(end(&token::mint(order)), Some(issued_at.after(HOUR)));
    }
    assert_eq!(end("007unreadable"), None);
    assert_eq!(end("else"), None);
}

#[test]
fn a_remedy_names_key_and_file_and_a_token_of_another_app() {
    let value = |token: String| {
        let mut credentials =
            credentials(Auth::Token { token: Secret::from_value(token), user_id: None });
        credentials.proof(Time::begin().0).unwrap();
        credentials.remedy()
    };
    assert_eq!(value("t".to_owned()), "correct apps.auth.token and restart");
    let foreign = token::mint(token::Order {
        form: TokenForm::AccessToken2,
        app_id: "another",
        certificate: CERTIFICATE,
        user_id: "u",
        issued_at: Timestamp::default(),
        life: HOUR,
        salt: 1,
    });
    assert!(value(foreign).starts_with("apps.auth.token contains a token for another App ID"));
    assert_eq!(
        from_file(Path::new("/run/t")).remedy(),
        "correct apps.auth.token_file (/run/t); the bridge picks up the change without a restart"
    );
}

#[test]
fn no_secret_is_shown() {
    let mut credentials = minted(TokenForm::AccessToken2);
    let proof = credentials.proof(Time::begin().0).unwrap();
    let shown = format!("{credentials:?} {proof:?}");
    assert!(!shown.contains(CERTIFICATE) && !shown.contains("agora token"), "{shown}");
}

/// Another host accepts what this one refuses: this one gets two fresh tokens, and then the token
/// is left alone.
#[test]
fn a_host_that_refuses_what_others_accept_does_not_use_up_tokens() {
    let time = Time::begin();
    let mut credentials = minted(TokenForm::AccessToken2);
    let mut renewals = 0;
    let mut before = credentials.proof(time.0).unwrap().edition;
    for second in 0..60 {
        let now = time.after(second);
        let edition = credentials.proof(now).unwrap().edition;
        renewals += u32::from(edition != before);
        before = edition;
        assert!(credentials.accepted(edition, HOST));
        let refused = credentials.refused(edition, "other", now.monotonic);
        let expected = if second == 0 { Refused::Outdated } else { Refused::ForGood };
        assert_eq!(refused, expected, "after {second} s");
    }
    assert!(renewals <= 2, "{renewals}");
}

#[test]
fn a_life_that_one_refusal_cut_short_grows_again() {
    let time = Time::begin();
    let mut credentials = minted(TokenForm::AccessToken2);
    let first = credentials.proof(time.0).unwrap().edition;
    assert!(credentials.accepted(first, HOST));
    assert_eq!(credentials.refused(first, HOST, time.after(2).monotonic), Refused::Outdated);
    let (mut before, mut renewals) = (first, 0);
    for second in 0..1_000 {
        let edition = credentials.proof(time.after(second)).unwrap().edition;
        credentials.accepted(edition, HOST);
        renewals += u32::from(edition != before);
        before = edition;
    }
    // One proof a second: without growth there would be 500 renewals.
    assert!(renewals < 300, "{renewals}");
}
