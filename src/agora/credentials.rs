//! How a request proves who asks.
//!
//! Three forms, told apart by Agora's documents: Basic auth with a customer's RESTful credentials;
//! an AccessToken2 (prefix `007`) as `Authorization: agora token=…`; an AccessToken (`006`) as
//! `x-agora-token` with the user that it was made for as `x-agora-uid`. A 007 token in
//! `x-agora-token` is reported as rejected.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::config::Auth;
use crate::config::SecretError;

/// The credentials of an app.
#[derive(Clone, Debug)]
pub struct Credentials(Auth);

/// Why a request can't prove who asks.
#[derive(Debug, thiserror::Error)]
#[error("read the credentials of the app (apps.auth)")]
pub struct NoCredentials(#[from] SecretError);

// === impl Credentials ===

impl Credentials {
    /// The credentials that were configured.
    pub fn new(auth: Auth) -> Self {
        Self(auth)
    }

    /// The headers for a request. Read anew each time, so that a secret whose file was rewritten
    /// is used from the next request on.
    pub fn headers(&self) -> Result<Vec<(&'static str, String)>, NoCredentials> {
        match &self.0 {
            Auth::Basic { customer_id, customer_secret } => {
                let secret = customer_secret.reveal()?;
                let encoded = STANDARD.encode(format!("{customer_id}:{secret}"));
                Ok(vec![("authorization", format!("Basic {encoded}"))])
            }
            Auth::Token { token, user_id } => {
                let token = token.reveal()?;
                if token.starts_with("007") {
                    return Ok(vec![("authorization", format!("agora token={token}"))]);
                }
                let user = user_id.iter().map(|user| ("x-agora-uid", user.clone()));
                Ok(std::iter::once(("x-agora-token", token)).chain(user).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn check(auth: Auth, expected: &[(&str, &str)]) {
        let headers = Credentials::new(auth).headers().unwrap();
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
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
}
