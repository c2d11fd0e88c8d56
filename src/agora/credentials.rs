//! How requests authenticate.
//!
//! Agora's documents distinguish three forms: Basic auth with a customer's RESTful credentials; an
//! AccessToken2 (prefix `007`) as `Authorization: agora token=…`; an AccessToken (`006`) as
//! `x-agora-token`, with the user it was made for as `x-agora-uid`. A 007 token in `x-agora-token`
//! is reported to be rejected. Tokens are supplied by the operator, or made here.
//!
//! Secrets change, so a file is read for each request. While it can't be read, the last value stays
//! in use: another program may be in the middle of rewriting it. Each change begins a new
//! [`Edition`], so that the refusal of an old one doesn't count against its successor.
//!
//! A refusal by one host is not a refusal by all. A token that other hosts accept is renewed once
//! or twice for the host that refuses it; after that the host is at fault and not the token.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

mod inspect;

use self::inspect::{Inspected, inspect};
use super::token;
use super::token::LONGEST_LIFE;
use crate::config::{Auth, Secret, SecretError};
use crate::model::{AppId, Timestamp};

/// Number of consecutive fresh tokens that a host may refuse before the tokens are not to blame.
/// More than one, because the first may have been made by a clock that was wrong.
const FRESH_REFUSALS: u32 = 2;

/// A token made here is renewed after this share of its life, give or take [`JITTER`]. This leaves
/// time for an unavailable host, and spreads apps that started together.
const RENEWED_AFTER: f64 = 0.6;

const JITTER: f64 = 0.1;

/// A token from further in the future than this means that a clock was set back.
const FROM_THE_FUTURE: Duration = Duration::from_secs(30);

/// Factor by which the successor of a token that was renewed in time may live longer: a single
/// stray refusal must not shorten the life of all later tokens for good.
const LONGER: f64 = 1.01;

/// Minimum interval between tokens that are made because others were refused.
const SHORTEST_LIFE: Duration = Duration::from_secs(2);

/// The current credentials of an app.
#[derive(Debug)]
pub struct Credentials {
    app: AppId,
    auth: Auth,
    edition: Edition,
    known: Option<Known>,
    /// Since when the secret can't be read, and why.
    unreadable: Option<(Instant, NoCredentials)>,
    /// How long a token made here has proved to live.
    life: Duration,
    /// Number of consecutive fresh tokens refused, by host.
    refusals: HashMap<String, u32>,
    /// Number of times that a different secret was read.
    secrets: u64,
    random: StdRng,
}

/// The state of the credentials that a request carried. It changes with the secret, and with each
/// token made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edition(u64);

/// The authentication of a request.
pub struct Proof {
    /// Headers: secrets.
    pub headers: Vec<(&'static str, String)>,
    /// The state of the credentials that they belong to.
    pub edition: Edition,
}

/// The time, by Agora's clock as far as it is known, and by the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// By Agora's clock. It may jump, since it is based on ours.
    pub wall: Timestamp,
    /// It doesn't advance while the machine sleeps.
    pub monotonic: Instant,
}

/// What to do after a 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Ask again: the refused token was outdated, and there will be a new one.
    Outdated,
    /// No credentials that we have are accepted. A person or another program has to act.
    ForGood,
}

/// When the token that requests carry expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenEnd {
    /// When it expires; `None` if that can't be read from the token.
    pub at: Option<Timestamp>,
    /// Its whole lifetime.
    pub life: Option<Duration>,
    /// It is made here, and renewed in time.
    pub made_here: bool,
}

/// Why a request can't be authenticated.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NoCredentials {
    /// The secret can't be read.
    #[error("read {place}: {reason}")]
    Unreadable {
        /// Key and file.
        place: String,
        /// The reason, with causes.
        reason: String,
    },
    /// The secret can't be one that Agora issued.
    #[error("use {place}: {reason}")]
    Malformed {
        /// Key and file.
        place: String,
        /// The reason, without any part of the secret.
        reason: String,
    },
}

/// What requests carry now.
struct Known {
    /// The secret that was read: a password, a token, a certificate.
    secret: String,
    /// Why Agora is likely to refuse it. `None` once Agora has accepted it.
    suspicion: Option<String>,
    headers: Vec<(&'static str, String)>,
    token: Option<TokenEnd>,
    made: Option<Made>,
    /// Hosts that have accepted it.
    accepted_by: HashSet<String>,
}

/// A token made here.
#[derive(Clone, Copy, Debug)]
struct Made {
    at: Moment,
    renewed_after: Duration,
}

// === impl Credentials ===

impl Credentials {
    /// The configured credentials; the seed is for jitter.
    pub fn new(app: AppId, auth: Auth, seed: u64) -> Self {
        let life = configured_life(&auth);
        Self {
            app,
            auth,
            edition: Edition::default(),
            known: None,
            unreadable: None,
            life,
            refusals: HashMap::new(),
            secrets: 0,
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// The authentication for a request that leaves now.
    ///
    /// # Errors
    ///
    /// The secret can't be read or used, and never could be.
    pub fn proof(&mut self, now: Moment) -> Result<Proof, NoCredentials> {
        self.look(now.monotonic);
        if let Some(made) = self.known.as_ref().and_then(|known| known.made)
            && made.is_due(now)
        {
            self.life = self.life.mul_f64(LONGER).min(configured_life(&self.auth));
            self.renew();
        }
        if let Some(known) = &mut self.known
            && known.headers.is_empty()
        {
            known.begin(&self.app, &self.auth, now, self.life, &mut self.random);
        }
        match (&self.known, &self.unreadable) {
            (Some(known), _) => Ok(Proof { headers: known.headers.clone(), edition: self.edition }),
            (None, Some((_, error))) => Err(error.clone()),
            (None, None) => unreachable!("a secret is read, or can't be"),
        }
    }

    /// Reads the secret again. Returns whether it has changed.
    pub fn look(&mut self, now: Instant) -> bool {
        let revealed = self.secret().reveal();
        let revealed = revealed.map_err(|error| NoCredentials::unreadable(self.place(), &error));
        let inspected = revealed.and_then(|text| {
            let malformed = |reason| NoCredentials::Malformed { place: self.place(), reason };
            inspect(&self.app, &self.auth, &text).map_err(malformed)
        });
        let Inspected { secret, suspicion } = match inspected {
            Ok(inspected) => inspected,
            Err(error) => {
                let since = self.unreadable.as_ref().map_or(now, |(since, _)| *since);
                self.unreadable = Some((since, error));
                return false;
            }
        };
        self.unreadable = None;
        if self.known.as_ref().is_some_and(|known| known.secret == secret) {
            return false;
        }
        self.known = Some(Known {
            secret,
            suspicion,
            headers: Vec::new(),
            token: None,
            made: None,
            accepted_by: HashSet::new(),
        });
        self.refusals.clear();
        self.secrets += 1;
        self.edition.0 += 1;
        true
    }

    /// Records that a host accepted a request with this edition. Returns whether the edition is
    /// current.
    pub fn accepted(&mut self, edition: Edition, host: &str) -> bool {
        if edition != self.edition {
            return false;
        }
        self.refusals.remove(host);
        if let Some(known) = &mut self.known {
            known.suspicion = None;
            if !known.accepted_by.contains(host) {
                known.accepted_by.insert(host.to_owned());
            }
        }
        true
    }

    /// Records that a host refused a request with this edition.
    pub fn refused(&mut self, edition: Edition, host: &str, now: Instant) -> Refused {
        if edition != self.edition {
            return Refused::Outdated;
        }
        let Some(known) = &self.known else { return Refused::ForGood };
        let Some(made) = known.made else { return Refused::ForGood };
        if known.accepted_by.contains(host) {
            // It expired early: the next tokens are renewed before this age.
            let lived = now.saturating_duration_since(made.at.monotonic);
            self.life = self.life.min(lived).max(SHORTEST_LIFE);
            self.renew();
            return Refused::Outdated;
        }
        let others_accept = !known.accepted_by.is_empty();
        let refusals = self.refusals.entry(host.to_owned()).or_default();
        *refusals += 1;
        let may_be_the_token = *refusals < FRESH_REFUSALS;
        if may_be_the_token || !others_accept {
            self.renew();
        }
        if may_be_the_token { Refused::Outdated } else { Refused::ForGood }
    }

    /// Number of times that a different secret was read.
    pub fn secrets(&self) -> u64 {
        self.secrets
    }

    /// Since when the secret can't be read, and why.
    pub fn unreadable(&self) -> Option<(Instant, &NoCredentials)> {
        self.unreadable.as_ref().map(|(since, error)| (*since, error))
    }

    /// The state that requests carry now.
    pub fn edition(&self) -> Edition {
        self.edition
    }

    /// When the token that requests carry expires; `None` if they carry none.
    pub fn token_end(&self) -> Option<TokenEnd> {
        self.known.as_ref().and_then(|known| known.token)
    }

    /// Why Agora is likely to refuse the secret, with the secret's place; `None` if nothing is odd
    /// about it, or Agora has accepted it.
    pub fn suspicion(&self) -> Option<String> {
        let suspicion = self.known.as_ref()?.suspicion.as_ref()?;
        Some(format!("{} {suspicion}", self.place()))
    }

    /// What a person can do about a refusal.
    pub fn remedy(&self) -> String {
        if let Some(suspicion) = self.suspicion() {
            return suspicion;
        }
        let place = self.place();
        match self.secret().file() {
            Some(_) => format!("correct {place}; the bridge picks up the change without a restart"),
            None => format!("correct {place} and restart"),
        }
    }

    /// The key of the secret, with its file if there is one.
    pub fn place(&self) -> String {
        let name = match &self.auth {
            Auth::Basic { .. } => "customer_secret",
            Auth::Token { .. } => "token",
            Auth::Minted { .. } => "app_certificate",
        };
        let secret = self.secret();
        let key = secret.key(&format!("apps.auth.{name}"));
        match secret.file() {
            Some(path) => format!("{key} ({})", path.display()),
            None => key,
        }
    }

    fn secret(&self) -> &Secret {
        match &self.auth {
            Auth::Basic { customer_secret, .. } => customer_secret,
            Auth::Token { token, .. } => token,
            Auth::Minted { certificate, .. } => certificate,
        }
    }

    /// Makes the next request use another token.
    fn renew(&mut self) {
        self.edition.0 += 1;
        if let Some(known) = &mut self.known {
            known.headers.clear();
            known.made = None;
            known.accepted_by.clear();
        }
    }
}

// === impl Known ===

impl Known {
    /// Builds what requests carry from now on.
    fn begin(
        &mut self,
        app: &AppId,
        auth: &Auth,
        now: Moment,
        life: Duration,
        random: &mut StdRng,
    ) {
        let secret = self.secret.as_str();
        match auth {
            Auth::Basic { customer_id, .. } => {
                let encoded = STANDARD.encode(format!("{customer_id}:{secret}"));
                self.headers = vec![("authorization", format!("Basic {encoded}"))];
            }
            Auth::Token { user_id, .. } => {
                let read = token::read(secret);
                self.token = Some(TokenEnd {
                    at: read.as_ref().and_then(|token| token.ends_at),
                    life: read.and_then(|token| Some(token.ends_at?.since(token.issued_at))),
                    made_here: false,
                });
                self.headers = headers_of(secret, user_id.as_deref());
            }
            Auth::Minted { user_id, form, life: configured, .. } => {
                let made = token::mint(token::Order {
                    form: *form,
                    app_id: app.as_str(),
                    certificate: secret,
                    user_id,
                    issued_at: now.wall,
                    life: *configured,
                    salt: random.random(),
                });
                let share = RENEWED_AFTER + random.random_range(-JITTER..JITTER);
                let renewed_after = life.mul_f64(share);
                self.made = Some(Made { at: now, renewed_after });
                self.token = Some(TokenEnd {
                    at: Some(now.wall.after(*configured)),
                    life: Some(*configured),
                    made_here: true,
                });
                self.headers = headers_of(&made, Some(user_id));
            }
        }
    }
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { token, made, .. } = self;
        f.debug_struct("Known").field("token", token).field("made", made).finish_non_exhaustive()
    }
}

// === impl Made ===

impl Made {
    /// Check both clocks, as either may be wrong: one jumps, the other stops while the machine
    /// sleeps.
    fn is_due(&self, now: Moment) -> bool {
        let by_monotonic = now.monotonic.saturating_duration_since(self.at.monotonic);
        let by_wall = now.wall.since(self.at.wall);
        by_monotonic.max(by_wall) >= self.renewed_after
            || self.at.wall.since(now.wall) > FROM_THE_FUTURE
    }
}

// === impl Proof ===

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proof").field("edition", &self.edition).finish_non_exhaustive()
    }
}

// === impl NoCredentials ===

impl NoCredentials {
    fn unreadable(place: String, error: &SecretError) -> Self {
        // `place` contains the file already.
        let reason = match error {
            SecretError::Unreadable { cause, .. } => cause.to_string(),
            SecretError::NotAFile { .. } => "it is not a regular file".to_owned(),
            SecretError::Empty { .. } => "it is empty".to_owned(),
            SecretError::TooLarge { .. } => "it is larger than 64 KiB".to_owned(),
            SecretError::NotText { .. } => "it is not UTF-8 text".to_owned(),
        };
        match error.is_about_content() {
            true => Self::Malformed { place, reason },
            false => Self::Unreadable { place, reason },
        }
    }
}

fn configured_life(auth: &Auth) -> Duration {
    match auth {
        Auth::Minted { life, .. } => *life,
        Auth::Basic { .. } | Auth::Token { .. } => LONGEST_LIFE,
    }
}

/// The headers for a token, depending on its form. A token of neither form is sent like an old one.
fn headers_of(token: &str, user_id: Option<&str>) -> Vec<(&'static str, String)> {
    if token.starts_with(token::PREFIX_007) {
        return vec![("authorization", format!("agora token={token}"))];
    }
    let user = user_id.map(|user| ("x-agora-uid", user.to_owned()));
    std::iter::once(("x-agora-token", token.to_owned())).chain(user).collect()
}

#[cfg(test)]
mod tests;
