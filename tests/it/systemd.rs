//! The bridge as systemd sees it: what it says over `$NOTIFY_SOCKET`. The test is the manager.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::child::Guarded;
use crate::support::names;
use crate::support::process::command;

/// On a machine that compiles at the same time a start takes long.
const LIMIT: Duration = Duration::from_secs(60);

/// Neither Agora nor Kafka is there: systemd has to do without them.
const CONFIG: &str = r#"
shutdown_grace = "6s"
[agora]
silence_timeout = "1s"
[kafka]
bootstrap_servers = "127.0.0.1:1"
[[apps]]
app_id = "a1"
hosts = ["http://127.0.0.1:1"]
[apps.auth]
customer_id = "c"
customer_secret = "s"
"#;

#[test]
fn systemd_hears_that_polling_began_that_the_bridge_lives_and_that_it_stops() {
    let home = names::folder();
    let config = home.path().join("bridge.toml");
    std::fs::write(&config, CONFIG).unwrap();
    let socket = home.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(LIMIT)).unwrap();
    let mut command = command();
    command
        .args(["run", "--config", names::text(&config)])
        .env("AGORA_RTM_BRIDGE__DATA_DIR", home.path().join("data"))
        .env("AGORA_RTM_BRIDGE__HTTP__LISTEN", "127.0.0.1:0")
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "300000")
        .env_remove("WATCHDOG_PID")
        .stdout(Stdio::null())
        .stderr(File::create(home.path().join("log")).unwrap());
    let mut bridge = Guarded::spawn(&mut command, home.path());

    let hear = || {
        let mut message = [0; 256];
        let length = manager.recv(&mut message).expect("the bridge says something in time");
        String::from_utf8_lossy(&message[..length]).trim_end().to_owned()
    };
    assert_eq!(hear(), "READY=1");
    assert_eq!([hear(), hear()], ["WATCHDOG=1", "WATCHDOG=1"]);
    bridge.signal(Signal::TERM);
    let said = std::iter::repeat_with(hear).find(|said| said != "WATCHDOG=1");
    assert_eq!(said.as_deref(), Some("STOPPING=1"));
    // From here nobody listens: what it says then must not hold it.
    assert_eq!(bridge.wait(LIMIT).code(), Some(0));
}
