//! The `[[apps]]` section: App IDs, regions, endpoints and credentials.

use std::collections::BTreeMap;

use crate::model::{AppId, Endpoint, Region};

use super::reader::{Read, Reader};
use super::{App, Auth, EndpointPath, Host, RegionHosts, Secret, TokenForm};

/// Name of the region of an app that lists `hosts` instead of regions.
pub(super) const ONLY_REGION: &str = "default";

/// Versions of the tokens that the bridge generates, as written in `token_version`.
pub(super) const TOKEN_FORMS: [(&str, TokenForm); 2] =
    [("007", TokenForm::AccessToken2), ("006", TokenForm::AccessToken)];

/// The credentials that `[apps.auth]` accepts.
const FORMS: &str = "customer_id with customer_secret, or app_certificate with user_id, or token";

/// Values that must be unique, with the path of each.
///
/// Two entries with the same value would take events from each other.
#[derive(Debug, Default)]
struct SeenValues(BTreeMap<String, String>);

impl SeenValues {
    fn once(&mut self, reader: &mut Reader, path: &str, value: String) -> Read<String> {
        match self.0.insert(value.clone(), path.to_owned()) {
            None => Ok(value),
            Some(other) => {
                let reason = format!(
                    "is already used by {other}: the two would take events from each other"
                );
                Err(reader.fault(path, reason))
            }
        }
    }
}

/// Reads every app.
pub(super) fn apps(reader: &mut Reader) -> Read<Vec<App>> {
    let count = reader.len("apps");
    if count == 0 {
        let reason = "is required: add [[apps]] with an app_id, or set \
                      AGORA_RTM_BRIDGE__APPS__0__APP_ID";
        return Err(reader.fault("apps", reason));
    }
    let mut seen = SeenValues::default();
    let apps: Vec<_> = (0..count)
        .map(|index| {
            let path = format!("apps[{index}]");
            match reader.is_given(&path) {
                true => app(reader, &path, &mut seen),
                false => Err(reader.hole("apps", index)),
            }
        })
        .collect();
    apps.into_iter().collect()
}

fn app(reader: &mut Reader, path: &str, seen: &mut SeenValues) -> Read<App> {
    let app_id_path = format!("{path}.app_id");
    let app_id = reader.checked(&app_id_path, app_id);
    let app_id = app_id.and_then(|id| seen.once(reader, &app_id_path, id));
    let regions = regions(reader, path);
    let endpoints = endpoints(reader, path);
    let requests_per_second = reader.count(&format!("{path}.requests_per_second"));
    let auth = auth(reader, &format!("{path}.auth"), app_id.as_deref().ok());
    Ok(App {
        app_id: AppId::new(app_id?),
        regions: regions?,
        endpoints: endpoints?,
        requests_per_second: requests_per_second?,
        auth: auth?,
    })
}

fn app_id(text: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    match text {
        "" => Err("is empty".to_owned()),
        text if text.len() <= 64 && text.bytes().all(legal) => Ok(text.to_owned()),
        _ => Err("is not an App ID: Agora's are 32 hexadecimal digits (the bridge accepts up to \
                  64 letters, digits, dashes and underscores)"
            .to_owned()),
    }
}

// --- regions ---

fn regions(reader: &mut Reader, app: &str) -> Read<Vec<RegionHosts>> {
    let hosts_path = format!("{app}.hosts");
    let list = format!("{app}.regions");
    let count = reader.len(&list);
    let plain_http = reader.flag(&format!("{app}.allow_plain_http"))?;
    let mut seen = SeenValues::default();
    if count == 0 {
        let hosts = hosts(reader, &hosts_path, plain_http, &mut seen)?;
        return Ok(vec![RegionHosts { name: Region::new(ONLY_REGION), hosts }]);
    }
    if reader.is_given(&hosts_path) {
        let reason = "can't be combined with regions: move the hosts into a region";
        return Err(reader.fault(&hosts_path, reason));
    }
    let regions: Vec<_> = (0..count)
        .map(|index| {
            let path = format!("{list}[{index}]");
            if !reader.is_given(&path) {
                return Err(reader.hole(&list, index));
            }
            let name_path = format!("{path}.name");
            let name = reader.checked(&name_path, region);
            let name = name.and_then(|name| seen.once(reader, &name_path, name));
            let hosts = hosts(reader, &format!("{path}.hosts"), plain_http, &mut seen);
            Ok(RegionHosts { name: Region::new(name?), hosts: hosts? })
        })
        .collect();
    regions.into_iter().collect()
}

fn region(text: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.is_empty() || text.len() > 64 || !text.bytes().all(legal) {
        return Err(
            "must be 1 to 64 letters, digits, dots, dashes and underscores: it appears in \
                    metrics and records"
                .to_owned(),
        );
    }
    Ok(text.to_owned())
}

fn hosts(
    reader: &mut Reader,
    path: &str,
    plain_http: bool,
    seen: &mut SeenValues,
) -> Read<Vec<Host>> {
    let hosts: Vec<_> = reader
        .texts(path)?
        .into_iter()
        .map(|(path, text)| {
            let host = Host::new(&text, plain_http);
            let host = host.map_err(|reason| reader.fault(&path, reason))?;
            seen.once(reader, &path, host.to_string())?;
            Ok(host)
        })
        .collect();
    hosts.into_iter().collect()
}

// --- endpoints ---

fn endpoints(reader: &mut Reader, app: &str) -> Read<Vec<EndpointPath>> {
    let listed = listed(reader, &format!("{app}.endpoints"));
    // Read both paths, even if only one endpoint is listed: a fault in the other should show up now
    // and not when that endpoint is enabled.
    let paths = Endpoint::ALL.map(|endpoint| {
        let path = reader.checked(&format!("{app}.path_{endpoint}"), url_path);
        path.map(|path| EndpointPath { endpoint, path })
    });
    let (listed, paths) = (listed?, paths.into_iter().collect::<Read<Vec<_>>>()?);
    Ok(paths.into_iter().filter(|path| listed.contains(&path.endpoint)).collect())
}

fn listed(reader: &mut Reader, path: &str) -> Read<Vec<Endpoint>> {
    let mut listed = Vec::new();
    let mut outcome = Ok(());
    for (path, name) in reader.texts(path)? {
        let reason = match name.parse::<Endpoint>() {
            Ok(endpoint) if !listed.contains(&endpoint) => {
                listed.push(endpoint);
                continue;
            }
            Ok(endpoint) => format!("lists {endpoint} twice"),
            Err(()) => format!("must be {}", Endpoint::ALL.map(Endpoint::name).join(" or ")),
        };
        outcome = Err(reader.fault(&path, reason));
    }
    outcome.map(|()| listed)
}

fn url_path(text: &str) -> Result<String, String> {
    let legal = |letter: char| letter.is_ascii_alphanumeric() || "-._~".contains(letter);
    let is_step = |step: &str| !matches!(step, "" | "." | "..") && step.chars().all(legal);
    if !text.split('/').all(is_step) {
        return Err(
            r#"must be a path without a slash at either end, as in "rtm/vendor/user_events""#
                .to_owned(),
        );
    }
    Ok(text.to_owned())
}

// --- auth ---

fn auth(reader: &mut Reader, path: &str, app_id: Option<&str>) -> Read<Auth> {
    let customer_id = reader.optional(&format!("{path}.customer_id"), customer_id);
    let customer_secret = reader.secret(&format!("{path}.customer_secret"));
    let token = reader.secret(&format!("{path}.token"));
    let certificate = reader.secret(&format!("{path}.app_certificate"));
    let user_id = reader.optional(&format!("{path}.user_id"), user_id);
    let form = token_form(reader, path, app_id);
    let life = reader.duration(&format!("{path}.token_life"));
    let basic = (customer_id?, customer_secret?);
    let (token, certificate, user_id) = (token?, certificate?, user_id?);
    let (form, life) = (form?, life?);
    match (basic, token, certificate) {
        ((None, None), Some(token), None) => token_auth(reader, path, token, user_id),
        ((None, None), None, Some(certificate)) => {
            let Some(user_id) = user_id else {
                let reason = "is required with app_certificate: a token is issued for a user; \
                              choose any name that no other program uses";
                return Err(reader.fault(&format!("{path}.user_id"), reason));
            };
            Ok(Auth::Minted { certificate, user_id, form, life })
        }
        ((None, None), None, None) => {
            let reason = format!("is required: {FORMS}");
            Err(reader.fault(path, reason))
        }
        (basic, None, None) => basic_auth(reader, path, basic, user_id),
        (_, _, _) => {
            let reason = format!("must be exactly one of these: {FORMS}");
            Err(reader.fault(path, reason))
        }
    }
}

fn basic_auth(
    reader: &mut Reader,
    path: &str,
    basic: (Option<String>, Option<Secret>),
    user_id: Option<String>,
) -> Read<Auth> {
    match (basic, user_id) {
        ((Some(customer_id), Some(customer_secret)), None) => {
            Ok(Auth::Basic { customer_id, customer_secret })
        }
        ((Some(_), Some(_)), Some(_)) => {
            let reason = "is only for tokens; customer_id doesn't need it";
            Err(reader.fault(&format!("{path}.user_id"), reason))
        }
        ((_, None), _) => {
            let reason = "is required with customer_id; customer_secret_file works too";
            Err(reader.fault(&format!("{path}.customer_secret"), reason))
        }
        ((None, _), _) => {
            let reason = "is required with customer_secret";
            Err(reader.fault(&format!("{path}.customer_id"), reason))
        }
    }
}

fn token_form(reader: &mut Reader, path: &str, app_id: Option<&str>) -> Read<TokenForm> {
    let path = format!("{path}.token_version");
    let form = reader.choice(&path, &TOKEN_FORMS)?;
    // A 006 token doesn't contain the length of the App ID.
    if form == TokenForm::AccessToken && app_id.is_some_and(|id| id.len() != 32) {
        let reason = "needs an app_id of 32 characters, as Agora's are";
        return Err(reader.fault(&path, reason));
    }
    Ok(form)
}

fn token_auth(
    reader: &mut Reader,
    auth: &str,
    token: Secret,
    user_id: Option<String>,
) -> Read<Auth> {
    // A value that isn't a token at all becomes a condition of the app, which clears once the value
    // is corrected.
    let is_old = token.reveal().is_ok_and(|token| token.trim_start().starts_with("006"));
    if is_old && user_id.is_none() {
        let reason = "is required with a token that begins with 006: Agora requires the user \
                      that it was issued for";
        return Err(reader.fault(&format!("{auth}.user_id"), reason));
    }
    Ok(Auth::Token { token, user_id })
}

fn customer_id(text: &str) -> Result<String, String> {
    match text {
        "" => Err("is empty".to_owned()),
        text if text.contains(':') => {
            Err("must not contain a colon: Basic authentication can't carry one".to_owned())
        }
        text => Ok(text.to_owned()),
    }
}

fn user_id(text: &str) -> Result<String, String> {
    let legal = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    if text.is_empty() || !text.bytes().all(legal) {
        return Err("must be printable ASCII characters: it is sent in a header".to_owned());
    }
    Ok(text.to_owned())
}
