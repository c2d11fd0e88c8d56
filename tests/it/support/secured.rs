//! A real broker that requires authentication and authorises only what was granted. It has a
//! listener for passwords (PLAIN and SCRAM), one for passwords within TLS, and one for
//! certificates.
//!
//! It also has a plain listener for the tests themselves, whose clients may do everything.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::{fs, thread};

use super::broker::{Broker, Extra, free_port};
use super::names;
use super::names::Names;

/// The password of all users and key stores.
pub(crate) const PASSWORD: &str = "the-right-password";

/// Its users: one for each mechanism, and one for tests that grant and revoke.
pub(crate) const USERS: [&str; 3] = ["plain-user", "scram-user", "strict-user"];

/// The broker.
pub(crate) struct Secured {
    broker: Broker,
    sasl: u16,
    sasl_tls: u16,
    certificates: u16,
}

/// How a client authenticates.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Proof {
    /// A user with SASL/PLAIN.
    Plain(&'static str),
    /// A user with SCRAM-SHA-512, within TLS.
    Scram(&'static str),
    /// The certificate of `CN=bridge`.
    Certificate,
}

/// Resource types, with their numbers in Kafka's protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Topic = 2,
    Group = 3,
    TransactionalId = 5,
}

/// Operations, with their numbers in Kafka's protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    Read = 3,
    Write = 4,
    Create = 5,
    Describe = 8,
    DescribeConfigs = 10,
}

/// The broker that all tests share.
pub(crate) fn shared() -> &'static Secured {
    static SHARED: LazyLock<Secured> = LazyLock::new(Secured::start);
    &SHARED
}

// === impl Secured ===

impl Secured {
    /// A broker that only this test uses.
    pub(crate) fn own() -> Self {
        Self::start()
    }

    /// Restarts it with another password for the users of SASL/PLAIN.
    pub(crate) fn rotate_password(&mut self, password: &str) {
        let plain = |user: &str, password: &str| format!(" user_{user}=\"{password}\"");
        self.broker.change_settings(|settings| {
            USERS.into_iter().fold(settings, |settings, user| {
                settings.replace(&plain(user, PASSWORD), &plain(user, password))
            })
        });
        self.start_again();
    }

    /// Creates a new key and certificate for `CN=bridge`, and restarts the broker with trust in no
    /// other. The bridge's key store stays unchanged until [`Self::hand_out_certificate`].
    pub(crate) fn renew_certificate(&mut self) {
        let home = self.broker.home();
        make_store(home, "renewed", "bridge");
        let [trusted, renewed] = ["bridge.pem", "renewed.pem"].map(|name| home.join(name));
        fs::copy(renewed, trusted).expect("its folder can be written to");
        self.start_again();
    }

    /// Puts the new certificate where the bridge's configuration expects it.
    pub(crate) fn hand_out_certificate(&self) {
        let home = self.broker.home();
        fs::copy(home.join("renewed.p12"), home.join("bridge.p12")).expect("it was renewed");
    }

    fn start_again(&mut self) {
        self.broker.kill_9();
        self.broker.start_again();
    }

    fn start() -> Self {
        let [sasl, sasl_tls, certificates] = [free_port(), free_port(), free_port()];
        let broker = Broker::own_with_extra(|home| {
            make_stores(home);
            Extra {
                doors: vec![
                    ("SASL", "SASL_PLAINTEXT", sasl),
                    ("SASLTLS", "SASL_SSL", sasl_tls),
                    ("CERTIFICATES", "SSL", certificates),
                ],
                settings: settings(home),
                behind: None,
                storage: USERS
                    .into_iter()
                    .flat_map(|user| {
                        let user = format!("SCRAM-SHA-512=[name={user},password={PASSWORD}]");
                        ["--add-scram".to_owned(), user]
                    })
                    .collect(),
            }
        });
        Self { broker, sasl, sasl_tls, certificates }
    }

    /// The address of the plain listener, for the tests.
    pub(crate) fn bootstrap(&self) -> String {
        self.broker.bootstrap()
    }

    /// The address of a listener whose TLS certificate no system trusts.
    pub(crate) fn tls_address(&self) -> String {
        format!("127.0.0.1:{}", self.sasl_tls)
    }

    /// The address of the listener for this mechanism.
    pub(crate) fn door(&self, proof: Proof) -> String {
        let port = match proof {
            Proof::Plain(_) => self.sasl,
            Proof::Scram(_) => self.sasl_tls,
            Proof::Certificate => self.certificates,
        };
        format!("127.0.0.1:{port}")
    }

    /// The table `[kafka.options]` for this mechanism and password.
    pub(crate) fn options(&self, proof: Proof, password: &str) -> String {
        let file = |name: &str| names::text(&self.broker.home().join(name)).to_owned();
        let sasl = |mechanism: &str, user: &str| {
            format!(
                "\"sasl.mechanism\" = \"{mechanism}\"\n\"sasl.username\" = \"{user}\"\n\
                 \"sasl.password\" = \"{password}\"\n"
            )
        };
        let ca = format!("\"ssl.ca.location\" = \"{}\"\n", file("broker.pem"));
        let rest = match proof {
            Proof::Plain(user) => {
                format!("\"security.protocol\" = \"sasl_plaintext\"\n{}", sasl("PLAIN", user))
            }
            Proof::Scram(user) => {
                let sasl = sasl("SCRAM-SHA-512", user);
                format!("\"security.protocol\" = \"sasl_ssl\"\n{ca}{sasl}")
            }
            Proof::Certificate => format!(
                "\"security.protocol\" = \"ssl\"\n{ca}\"ssl.keystore.location\" = \"{}\"\n\
                 \"ssl.keystore.password\" = \"{password}\"\n",
                file("bridge.p12")
            ),
        };
        format!("\n[kafka.options]\n{rest}")
    }

    /// Grants exactly the ACLs that `check --help` lists.
    pub(crate) fn grant_all(&self, proof: Proof, names: &Names) {
        let group = names.group.as_str();
        use Operation::{Create, Describe, DescribeConfigs, Read, Write};
        for operation in [Describe, DescribeConfigs, Write, Create] {
            self.grant(proof, Kind::Topic, group, operation);
        }
        for topic in [&names.pages, &names.state] {
            self.grant(proof, Kind::Topic, topic, Read);
        }
        self.grant(proof, Kind::Group, group, Read);
        self.grant_transactions(proof, names);
    }

    /// Grants what transactions need.
    pub(crate) fn grant_transactions(&self, proof: Proof, names: &Names) {
        for operation in [Operation::Describe, Operation::Write] {
            self.grant(proof, Kind::TransactionalId, &names.group, operation);
        }
    }

    /// Grants one operation on everything whose name starts with `prefix`.
    pub(crate) fn grant(&self, proof: Proof, kind: Kind, prefix: &str, operation: Operation) {
        let user = match proof {
            Proof::Plain(user) | Proof::Scram(user) => user,
            Proof::Certificate => "CN=bridge",
        };
        let text = |text: &str| {
            let length = u16::try_from(text.len()).expect("names are short");
            [&length.to_be_bytes(), text.as_bytes()].concat()
        };
        // CreateAcls, version 1: one ACL that allows, for a name prefix.
        let request = [
            &[0, 30, 0, 1, 0, 0, 0, 7][..],
            &text("tests"),
            &[0, 0, 0, 1, kind as u8],
            &text(prefix),
            &[4],
            &text(&format!("User:{user}")),
            &text("*"),
            &[operation as u8, 3],
        ]
        .concat();
        let answer = ask(&self.bootstrap(), &request);
        // Correlation id, throttle time, one result with its error code.
        let error = answer.get(12..14).expect("the broker answers each grant");
        assert_eq!(error, [0, 0], "{kind:?} {prefix} {operation:?}: {answer:?}");
    }
}

/// Sends one request of Kafka's protocol; returns the answer without its length.
fn ask(bootstrap: &str, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(bootstrap).expect("the broker listens");
    let length = u32::try_from(request.len()).expect("it is short");
    stream.write_all(&length.to_be_bytes()).expect("the broker reads");
    stream.write_all(request).expect("the broker reads");
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("the broker answers");
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).expect("the broker answers");
    answer
}

fn settings(home: &Path) -> String {
    let file = |name: &str| names::text(&home.join(name)).to_owned();
    let users: String = USERS.iter().map(|user| format!(" user_{user}=\"{PASSWORD}\"")).collect();
    let module = "org.apache.kafka.common.security";
    let door = |name: &str| {
        format!(
            "listener.name.{name}.plain.sasl.jaas.config={module}.plain.PlainLoginModule \
             required{users};\n\
             listener.name.{name}.scram-sha-512.sasl.jaas.config={module}.scram.ScramLoginModule \
             required;\n"
        )
    };
    format!(
        "\
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
{}{}ssl.keystore.type=PKCS12
ssl.keystore.location={}
ssl.keystore.password={PASSWORD}
ssl.truststore.type=PEM
ssl.truststore.location={}
listener.name.certificates.ssl.client.auth=required
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
",
        door("sasl"),
        door("sasltls"),
        file("broker.p12"),
        file("bridge.pem"),
    )
}

/// Creates a key and a self-signed certificate for the broker and for the bridge.
fn make_stores(home: &Path) {
    thread::scope(|scope| {
        for name in ["broker", "bridge"] {
            scope.spawn(move || make_store(home, name, name));
        }
    });
}

/// Creates a key and a self-signed certificate, in `{name}.p12` and `{name}.pem`.
pub(crate) fn make_store(home: &Path, name: &str, common_name: &str) {
    let store = home.join(format!("{name}.p12"));
    let dname = format!("CN={common_name}");
    let mut tool = keytool(&store);
    tool.args(["-genkeypair", "-alias", name, "-dname", &dname, "-validity", "30"]);
    tool.args(["-keyalg", "EC", "-groupname", "secp256r1", "-ext", "san=ip:127.0.0.1"]);
    assert!(tool.status().is_ok_and(|status| status.success()), "keytool makes {name}");
    let pem: PathBuf = home.join(format!("{name}.pem"));
    let mut tool = keytool(&store);
    tool.args(["-exportcert", "-rfc", "-alias", name, "-file"]).arg(&pem);
    assert!(tool.status().is_ok_and(|status| status.success()), "keytool shows {name}");
    assert!(fs::read_to_string(pem).is_ok_and(|text| text.contains("BEGIN CERTIFICATE")));
}

fn keytool(store: &Path) -> Command {
    let mut tool = Command::new("keytool");
    tool.arg("-keystore").arg(store).args(["-storetype", "PKCS12", "-storepass", PASSWORD]);
    tool.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    tool
}
