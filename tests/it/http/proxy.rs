//! Proxies: who is asked through one, and what it is told.

use std::process::Command;
use std::{env, fs};

use agora_rtm_bridge::config::{Proxy, Secret};
use tokio::sync::mpsc;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;

/// A proxy that answers what it is asked itself, and refuses tunnels. Tells the heads it was sent.
async fn proxy() -> (SocketAddr, UnboundedReceiver<String>, JoinSet<()>) {
    let (listener, address) = listen().await;
    let (tell, heads) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("it listens");
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                head.push(char::from(stream.read_u8().await.expect("a request comes")));
            }
            let refusal = "HTTP/1.1 407 Who?\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
            let says = if head.starts_with("CONNECT") { refusal } else { answer };
            tell.send(head).expect("the test listens");
            stream.write_all(says.as_bytes()).await.expect("it is read");
        }
    });
    (address, heads, tasks)
}

#[tokio::test]
async fn a_proxy_is_asked_with_the_password_of_a_file_and_never_for_this_machine() {
    let (address, mut heads, _tasks) = proxy().await;
    let folder = tempfile::tempdir().expect("the temporary folder can be written to");
    let password = folder.path().join("password");
    fs::write(&password, "hunter2\n").expect("a fresh folder can be written to");
    let settings = Agora {
        proxy: Some(Proxy::new(&format!("http://me@{address}")).expect("a URL")),
        proxy_password: Some(Secret::from_file(password)),
        ..settings()
    };
    let http = Http::new(&settings).expect("these settings are usual ones");
    let ask = |url: String| http.ask(Request { url, proof: Vec::new() });

    let reply = ask("http://agora.invalid/x".to_owned()).await;
    assert!(matches!(reply, Reply::Answered(_)), "{reply:?}");
    let head = heads.recv().await.expect("the proxy was asked");
    assert!(head.starts_with("GET http://agora.invalid/x HTTP/1.1\r\n"), "{head}");
    // "me:hunter2", as RFC 7617 writes it.
    assert!(head.contains(": Basic bWU6aHVudGVyMg=="), "{head}");

    let reply = ask("https://agora.invalid/x".to_owned()).await;
    let Reply::NotSent(error) = reply else { panic!("{reply:?}") };
    assert!(!error.to_string().contains("hunter2"), "{error}");
    let head = heads.recv().await.expect("the proxy was asked");
    assert!(head.starts_with("CONNECT agora.invalid:443 HTTP/1.1\r\n"), "{head}");

    let server = Server::start(|| Act::Answer).await;
    for name in ["127.0.0.1", "localhost"] {
        let url = format!("http://{name}:{}{}", server.address.port(), path(7));
        let reply = ask(url).await;
        let Reply::Answered(raw) = reply else { panic!("{name}: {reply:?}") };
        assert_eq!(raw.body, path(7), "the proxy answers otherwise");
    }
    assert!(heads.try_recv().is_err(), "the proxy was asked for this machine");
    assert!(!format!("{http:?}").contains("hunter2"));
}

/// The variable that makes this binary the child, and says what to ask for.
const CHILD: &str = "AGORA_TEST_PROXY_CHILD";

/// Asks once, with what its environment says.
#[tokio::test]
#[ignore = "run as a child of the test below"]
async fn child() {
    let Ok(url) = env::var(CHILD) else { return };
    let http = Http::new(&settings()).expect("these settings are usual ones");
    let reply = http.ask(Request { url, proof: Vec::new() }).await;
    eprintln!("\nanswered {}", matches!(reply, Reply::Answered(_)));
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_asked_but_for_hosts_that_are_named_and_this_machine() {
    let (address, mut heads, _tasks) = proxy().await;
    let proxy = format!("http://{address}");
    let server = Server::start(|| Act::Answer).await;
    let here = format!("http://localhost:{}{}", server.address.port(), path(7));
    let http = "http://agora.invalid/x";
    for (url, variables, asked) in [
        (http, vec![("http_proxy", &*proxy)], Some("GET http://agora.invalid/x ")),
        (http, vec![("ALL_PROXY", &*proxy)], Some("GET http://agora.invalid/x ")),
        (
            "https://agora.invalid/x",
            vec![("HTTPS_PROXY", &*proxy)],
            Some("CONNECT agora.invalid:443 "),
        ),
        (http, vec![("http_proxy", &*proxy), ("no_proxy", "agora.invalid")], None),
        (&here, vec![("http_proxy", &*proxy)], None),
    ] {
        let mut command = Command::new(env::current_exe().expect("this is a process"));
        command.args(["--exact", "http::proxy::child", "--ignored", "--nocapture"]);
        for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        command.env(CHILD, url).envs(variables);
        let child = tokio::task::spawn_blocking(move || command.output());
        let output = child.await.expect("it does not panic").expect("it can be started");
        let said = String::from_utf8_lossy(&output.stderr);
        let is_answered = asked.is_some_and(|asked| asked.starts_with("GET")) || url == here;
        assert!(said.contains(&format!("\nanswered {is_answered}\n")), "{url}: {said}");
        match (asked, heads.try_recv()) {
            (Some(asked), Ok(head)) => assert!(head.starts_with(asked), "{head}"),
            (None, Err(_)) => {}
            (asked, head) => panic!("{url}: {asked:?}, {head:?}"),
        }
    }
}
