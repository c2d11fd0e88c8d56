//! Checks on a request: path, credentials, rate limit.

use std::collections::VecDeque;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::script::{AppScript, TokenScript};
use super::wire::Request;
use crate::agora::token;
use crate::agora::token::Token;
use crate::model::{AppId, Endpoint, Timestamp};

/// The resource that a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    /// An endpoint of an App ID.
    Feed(&'a str, Endpoint),
    /// The Console's list of projects, which takes no events.
    Projects,
    /// An unknown path.
    Nothing,
}

/// The credentials that an App ID accepts.
#[derive(Clone)]
pub(super) struct Lock {
    /// The value after `Basic `.
    basic: String,
    tokens: Vec<TokenScript>,
    app_id: AppId,
    certificate: String,
    token_life: Option<Duration>,
}

/// A token that claims to be issued further in the future than this was not issued by a correct
/// clock.
const FROM_THE_FUTURE: Duration = Duration::from_secs(60);

/// The requests of the last second.
#[derive(Debug, Default)]
pub(super) struct Window {
    arrivals: VecDeque<Duration>,
}

// === impl Target ===

impl<'a> Target<'a> {
    /// URLs are case-sensitive; the query is ignored.
    pub(super) fn of(path: &'a str) -> Self {
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        if path == "/dev/v1/projects" {
            return Self::Projects;
        }
        let parts: Vec<&str> = path.split('/').collect();
        match parts.as_slice() {
            // Some old documents print `hook` for the channel events.
            ["", "dev", "v2", "project", app_id, "rtm", "hook", "channel_events"] => {
                Self::Feed(app_id, Endpoint::Channel)
            }
            ["", "dev", "v2", "project", app_id, "rtm", "vendor", endpoint] => {
                endpoint.parse().map_or(Self::Nothing, |it| Self::Feed(app_id, it))
            }
            _ => Self::Nothing,
        }
    }
}

// === impl Lock ===

impl Lock {
    pub(super) fn of(app: &AppScript) -> Self {
        let AppScript { customer_id, customer_secret, .. } = app;
        let basic = STANDARD.encode(format!("{customer_id}:{customer_secret}"));
        Self {
            basic,
            tokens: app.tokens.clone(),
            app_id: app.app_id.clone(),
            certificate: app.app_certificate.clone(),
            token_life: app.token_life,
        }
    }

    /// Whether the request carries one of the three forms of credentials, valid at that moment.
    pub(super) fn opens(&self, request: &Request, now: Duration, wall: Timestamp) -> bool {
        self.opens_with_basic(request)
            || self.tokens.iter().filter(|it| it.is_good(now)).any(|it| it.opens(request))
            || self.opens_with_signature(request, wall)
    }

    /// A 007 token contains its user; a 006 token needs it in a header.
    fn opens_with_signature(&self, request: &Request, wall: Timestamp) -> bool {
        if let Some(("agora", value)) = authorization(request) {
            let text = value.strip_prefix("token=").filter(|it| it.starts_with("007"));
            let token = text.and_then(token::read);
            return token.is_some_and(|it| self.admits(&it, it.user_id().unwrap_or(""), wall));
        }
        let text = request.value_of("x-agora-token").filter(|it| it.starts_with("006"));
        let user = request.value_of("x-agora-uid");
        let token = text.and_then(token::read);
        token.zip(user).is_some_and(|(it, user)| self.admits(&it, user, wall))
    }

    fn admits(&self, token: &Token, user_id: &str, wall: Timestamp) -> bool {
        let Some(ends_at) = token.ends_at else { return false };
        let ends_at =
            self.token_life.map_or(ends_at, |life| ends_at.min(token.issued_at.after(life)));
        token.app_id == self.app_id.as_str()
            && token.lets_in(user_id)
            && token.is_signed_with(&self.certificate, user_id)
            && token.issued_at <= wall.after(FROM_THE_FUTURE)
            && wall < ends_at
    }

    pub(super) fn opens_with_basic(&self, request: &Request) -> bool {
        let Some((scheme, value)) = authorization(request) else { return false };
        scheme.eq_ignore_ascii_case("basic") && value == self.basic
    }
}

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lock").finish_non_exhaustive()
    }
}

// === impl TokenScript ===

impl TokenScript {
    fn is_good(&self, now: Duration) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    fn opens(&self, request: &Request) -> bool {
        if self.token.starts_with("007") {
            let Some(("agora", value)) = authorization(request) else { return false };
            return value.strip_prefix("token=") == Some(&self.token);
        }
        let uid_fits = match &self.user_id {
            Some(user_id) => request.value_of("x-agora-uid") == Some(user_id),
            None => true,
        };
        uid_fits && request.value_of("x-agora-token") == Some(&self.token)
    }
}

fn authorization(request: &Request) -> Option<(&str, &str)> {
    let (scheme, value) = request.value_of("authorization")?.split_once(' ')?;
    Some((scheme, value.trim()))
}

// === impl Window ===

impl Window {
    /// Records a request and returns how many arrived in the second that ends with it.
    ///
    /// A request exactly one second ago no longer counts. Refused requests count too: a client that
    /// keeps sending too fast stays blocked, one that slows down to the limit is served again.
    pub(super) fn arrive(&mut self, now: Duration) -> u64 {
        let second = Duration::from_secs(1);
        while self.arrivals.front().is_some_and(|at| *at + second <= now) {
            self.arrivals.pop_front();
        }
        self.arrivals.push_back(now);
        self.arrivals.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agora::token::TokenForm;

    #[test]
    fn a_path_names_an_endpoint_exactly_or_not_at_all() {
        let project = "/dev/v2/project/abc";
        for (path, target) in [
            (format!("{project}/rtm/vendor/user_events"), Target::Feed("abc", Endpoint::User)),
            (
                format!("{project}/rtm/vendor/channel_events"),
                Target::Feed("abc", Endpoint::Channel),
            ),
            (format!("{project}/rtm/hook/channel_events"), Target::Feed("abc", Endpoint::Channel)),
            (format!("{project}/rtm/vendor/user_events?x"), Target::Feed("abc", Endpoint::User)),
            (format!("{project}/rtm/hook/user_events"), Target::Nothing),
            (format!("{project}/rtm/vendor/User_events"), Target::Nothing),
            (format!("{project}/rtm/vendor/user_events/"), Target::Nothing),
            ("/dev/v1/projects".into(), Target::Projects),
            ("/".into(), Target::Nothing),
            (String::new(), Target::Nothing),
        ] {
            assert_eq!(Target::of(&path), target, "{path}");
        }
    }

    #[test]
    fn each_form_of_credentials_opens_its_own_way() {
        let token = |token: &str, user_id: Option<&str>| TokenScript {
            token: token.into(),
            user_id: user_id.map(Into::into),
            until: Some(Duration::from_secs(10)),
        };
        let app = AppScript {
            customer_id: "Aladdin".into(),
            customer_secret: "open sesame".into(),
            tokens: vec![token("007abc", None), token("006def", Some("me")), token("plain", None)],
            ..AppScript::default()
        };
        let basic = "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==";
        type Headers<'a> = &'a [(&'a str, &'a str)];
        let forms: [(Headers<'_>, bool, bool); 10] = [
            (&[], false, false),
            (&[("Authorization", basic)], true, true),
            (&[("authorization", "Basic QWxhZGRpbjo=")], false, false),
            (&[("Authorization", "agora token=007abc")], true, false),
            (&[("Authorization", "agora token=006def")], false, false),
            (&[("x-agora-token", "007abc")], false, false),
            (&[("X-Agora-Token", "006def"), ("x-agora-uid", "me")], true, false),
            (&[("x-agora-token", "006def"), ("x-agora-uid", "you")], false, false),
            (&[("x-agora-token", "006def")], false, false),
            (&[("x-agora-token", "plain")], true, false),
        ];
        for (headers, at_first, after_expiry) in forms {
            let request = headers.iter().fold(Request::get("/"), |it, (k, v)| it.header(*k, *v));
            let lock = Lock::of(&app);
            let opens =
                |seconds| lock.opens(&request, Duration::from_secs(seconds), Timestamp::default());
            assert_eq!(opens(9), at_first, "{headers:?}");
            assert_eq!(opens(10), after_expiry, "{headers:?}");
        }
    }

    /// A valid token, and the name of its user.
    fn order(app: &AppScript, form: TokenForm) -> token::Order<'_> {
        token::Order {
            form,
            app_id: app.app_id.as_str(),
            certificate: &app.app_certificate,
            user_id: "me",
            issued_at: Timestamp::from_millis(1_700_000_000_000),
            life: Duration::from_secs(600),
            salt: 1,
        }
    }

    #[test]
    fn a_signed_token_opens_its_own_app_to_its_user_until_its_end() {
        let [app, other] = [0, 1].map(AppScript::numbered);
        let in_header = |form: TokenForm, token: String, user: &str| match form {
            TokenForm::AccessToken2 => {
                Request::get("/").header("Authorization", format!("agora token={token}"))
            }
            TokenForm::AccessToken => {
                Request::get("/").header("x-agora-token", token).header("x-agora-uid", user)
            }
        };
        for form in [TokenForm::AccessToken2, TokenForm::AccessToken] {
            let good = order(&app, form);
            let opens = |made: token::Order<'_>, user: &str, app: &AppScript, seconds: i64| {
                let wall = Timestamp::from_millis(1_700_000_000_000 + seconds * 1_000);
                let request = in_header(form, token::mint(made), user);
                Lock::of(app).opens(&request, Duration::ZERO, wall)
            };
            assert!(opens(good, "me", &app, 0) && opens(good, "me", &app, 599), "{form:?}");
            assert!(!opens(good, "me", &app, 600), "{form:?}: it has expired");
            assert!(opens(good, "me", &app, -60) && !opens(good, "me", &app, -61), "{form:?}");
            assert!(!opens(good, "me", &other, 0), "{form:?}: another App ID");
            let certificate = other.app_certificate.as_str();
            assert!(!opens(token::Order { certificate, ..good }, "me", &app, 0), "{form:?}");
            let short = AppScript { token_life: Some(Duration::from_secs(5)), ..app.clone() };
            assert!(opens(good, "me", &short, 4) && !opens(good, "me", &short, 5), "{form:?}");
            if form == TokenForm::AccessToken {
                assert!(!opens(good, "you", &app, 0), "the header names another user");
            }
            // Each form has its own header.
            let token = token::mint(good);
            let wrong = match form {
                TokenForm::AccessToken2 => in_header(TokenForm::AccessToken, token, "me"),
                TokenForm::AccessToken => in_header(TokenForm::AccessToken2, token, "me"),
            };
            assert!(!Lock::of(&app).opens(&wrong, Duration::ZERO, good.issued_at), "{form:?}");
        }
    }

    #[test]
    fn a_second_is_half_open() {
        let mut window = Window::default();
        let counts = |window: &mut Window, nanos| window.arrive(Duration::from_nanos(nanos));
        assert_eq!(counts(&mut window, 0), 1);
        assert_eq!(counts(&mut window, 500_000_000), 2);
        assert_eq!(counts(&mut window, 999_999_999), 3);
        assert_eq!(counts(&mut window, 1_000_000_000), 3, "the first is exactly a second old");
        assert_eq!(counts(&mut window, 3_000_000_000), 1);
    }
}
