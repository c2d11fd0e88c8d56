//! Addresses of Agora's hosts, and of the proxy in front of them.

use std::fmt;

use url::{Host as UrlHost, Url};

use crate::model::AppId;

use super::fault::without_password;

/// The validated base URL of an Agora host: scheme, host and port, nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host(String);

/// The URL of an HTTP proxy. It may contain a password, which `Debug` and `Display` leave out.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy(String);

// === impl Host ===

impl Host {
    /// Validates a base URL. `http://` is accepted only for loopback, unless `allow_plain_http`.
    ///
    /// # Errors
    ///
    /// The reason, worded to follow the URL.
    pub fn new(text: &str, allow_plain_http: bool) -> Result<Self, String> {
        let url = http_url(text)?;
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not contain credentials: put them in [apps.auth]".to_owned());
        }
        if !bare {
            return Err("must end after the host: put paths in path_user_events and \
                        path_channel_events"
                .to_owned());
        }
        if is_exposed(&url) && !allow_plain_http {
            return Err("sends the credentials in clear text: use https://, or set \
                        allow_plain_http = true"
                .to_owned());
        }
        Ok(Self(url.as_str().trim_end_matches('/').to_owned()))
    }

    /// The URL of an endpoint of an App ID on this host.
    pub fn url(&self, app: &AppId, path: &str) -> String {
        format!("{}/dev/v2/project/{app}/{path}", self.0)
    }

    /// Whether requests cross a network unencrypted: `http://` to another machine.
    pub fn is_exposed(&self) -> bool {
        Url::parse(&self.0).is_ok_and(|url| is_exposed(&url))
    }

    /// The base URL, without a trailing slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Proxy ===

impl Proxy {
    /// Validates the URL of a proxy.
    ///
    /// # Errors
    ///
    /// The reason, worded to follow the URL.
    pub fn new(text: &str) -> Result<Self, String> {
        http_url(text).map(|url| Self(url.into()))
    }

    /// The user name in the URL; empty if there is none.
    pub fn user(&self) -> String {
        Url::parse(&self.0).map(|url| url.username().to_owned()).unwrap_or_default()
    }

    /// The URL, including its password if it has one.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_password(&self.0))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

fn http_url(text: &str) -> Result<Url, String> {
    let example = r#"is not a URL such as "https://api.agora.io""#;
    let url = Url::parse(text).map_err(|cause| format!("{example}: {cause}"))?;
    match url.scheme() {
        // `url` repairs malformed URLs such as "https:api.agora.io"; we refuse them.
        "http" | "https" if text.contains("://") && !text.contains(char::is_whitespace) => Ok(url),
        _ => Err(example.to_owned()),
    }
}

fn is_exposed(url: &Url) -> bool {
    url.scheme() == "http" && !is_loopback(url)
}

/// Whether a URL points to this machine.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(UrlHost::Ipv4(address)) => address.is_loopback(),
        Some(UrlHost::Ipv6(address)) => address.is_loopback(),
        Some(UrlHost::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_base_url_and_nothing_else() {
        for (text, kept) in [
            ("https://api.agora.io", "https://api.agora.io"),
            ("https://API.agora.io:443/", "https://api.agora.io"),
            ("http://127.0.0.1:8190", "http://127.0.0.1:8190"),
            ("http://localhost:1", "http://localhost:1"),
            ("http://[::1]:8190/", "http://[::1]:8190"),
        ] {
            assert_eq!(Host::new(text, false).unwrap().as_str(), kept);
        }
        for (text, reason) in [
            ("", "is not a URL"),
            ("api.agora.io", "is not a URL"),
            ("ftp://api.agora.io", "is not a URL"),
            ("https:api.agora.io", "is not a URL"),
            ("https://api.agora.io/dev", "must end after the host"),
            ("https://api.agora.io?a=b", "must end after the host"),
            ("https://me:pw@api.agora.io", "must not contain credentials"),
            ("http://api.agora.io", "sends the credentials in clear"),
            ("http://localhost.example", "sends the credentials in clear"),
        ] {
            let refused = Host::new(text, false).unwrap_err();
            assert!(refused.starts_with(reason), "{text}: {refused}");
        }
        assert!(Host::new("http://10.0.0.1", true).is_ok());
    }

    #[test]
    fn an_endpoint_has_the_documented_url() {
        let host = Host::new("https://api.agora.io/", false).unwrap();
        assert_eq!(
            host.url(&AppId::new("abc"), "rtm/vendor/user_events"),
            "https://api.agora.io/dev/v2/project/abc/rtm/vendor/user_events"
        );
    }

    #[test]
    fn a_proxy_does_not_show_its_password() {
        let proxy = Proxy::new("http://me:hunter2@proxy.example:3128").unwrap();
        assert_eq!(proxy.reveal(), "http://me:hunter2@proxy.example:3128/");
        assert_eq!(format!("{proxy} {proxy:?}").matches("hunter2").count(), 0);
    }
}
