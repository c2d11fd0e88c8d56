//! A door of the broker that wants a password and a certificate, both of which a person renews
//! while the bridge runs.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::broker::{Broker, Extra};
use crate::support::names;
use crate::support::secured::{PASSWORD, make_store};

/// What the bridge was given to prove itself with.
pub(super) struct Secrets {
    /// What the bridge reads.
    folder: TempDir,
    /// How often the password was rotated.
    rotations: u32,
    /// There is something new to be handed out.
    is_due: bool,
}

/// What is renewed at the broker, which needs a start for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    Password,
    Certificate,
}

/// The protocol of the door.
pub(super) const PROTOCOL: &str = "SASL_SSL";

// === impl Secrets ===

impl Secrets {
    pub(super) fn new() -> Self {
        let secrets = Self { folder: names::folder(), rotations: 0, is_due: false };
        secrets.write_password();
        secrets
    }

    /// What the broker needs for its door; the bridge gets its part of it.
    pub(super) fn furnish(&self, home: &Path) -> Extra {
        for name in ["broker", "bridge"] {
            make_store(home, name, name);
        }
        fs::copy(home.join("bridge.p12"), self.store()).expect("it was just made");
        let file = |name: &str| names::text(&home.join(name)).to_owned();
        let settings = format!(
            "\
sasl.enabled.mechanisms=PLAIN
listener.name.behind.plain.sasl.jaas.config=\
org.apache.kafka.common.security.plain.PlainLoginModule required user_bridge=\"{}\";
listener.name.behind.ssl.client.auth=required
ssl.keystore.type=PKCS12
ssl.keystore.location={}
ssl.keystore.password={PASSWORD}
ssl.truststore.type=PEM
ssl.truststore.location={}
",
            password(0),
            file("broker.p12"),
            file("bridge.pem"),
        );
        Extra { settings, ..Extra::default() }
    }

    /// The table `[kafka.options]`.
    pub(super) fn options(&self, broker: &Broker) -> String {
        let ca = broker.home().join("broker.pem");
        let [password, store] = [self.password_file(), self.store()];
        format!(
            "[kafka.options]\n\"security.protocol\" = \"sasl_ssl\"\n\
             \"ssl.ca.location\" = {ca:?}\n\"ssl.keystore.location\" = {store:?}\n\
             \"ssl.keystore.password\" = \"{PASSWORD}\"\n\"sasl.mechanism\" = \"PLAIN\"\n\
             \"sasl.username\" = \"bridge\"\n\"sasl.password_file\" = {password:?}\n\n"
        )
    }

    /// What has to be done to a broker before it starts again.
    pub(super) fn renew(&mut self, what: Renewal) -> impl FnOnce(&Broker) + Send + 'static {
        let before = password(self.rotations);
        self.rotations += u32::from(what == Renewal::Password);
        let after = password(self.rotations);
        move |broker| match what {
            Renewal::Password => {
                broker.change_settings(|settings| settings.replace(&before, &after));
            }
            Renewal::Certificate => {
                let home = broker.home();
                fs::remove_file(home.join("bridge.p12")).expect("it was there");
                make_store(home, "bridge", "bridge");
            }
        }
    }

    /// The bridge shall get what is new.
    pub(super) fn hand_out(&mut self) {
        self.is_due = true;
    }

    /// Whether the bridge has what is new.
    pub(super) fn are_handed_out(&self) -> bool {
        !self.is_due
    }

    /// Gives it to the bridge. The broker is well: nothing is being made.
    pub(super) fn give(&mut self, broker: &Broker) {
        if std::mem::take(&mut self.is_due) {
            self.write_password();
            fs::copy(broker.home().join("bridge.p12"), self.store()).expect("it was made");
        }
    }

    fn write_password(&self) {
        fs::write(self.password_file(), password(self.rotations)).expect("the folder is ours");
    }

    fn password_file(&self) -> PathBuf {
        self.folder.path().join("password")
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("bridge.p12")
    }
}

/// No password is a part of another one.
fn password(rotations: u32) -> String {
    format!("{PASSWORD}-{rotations:06}")
}
