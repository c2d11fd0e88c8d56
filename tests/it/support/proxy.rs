//! A TCP proxy that behaves like a network: cut, stalled, or working.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// Listens on loopback and forwards to one address. It stops when the value is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    /// Its thread runs the proxy.
    _runtime: Runtime,
}

/// What happens to received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// They are forwarded.
    Open,
    /// They are held back in both directions; connections stay open.
    Stalled,
    /// Every connection is reset, including new ones.
    Cut,
}

#[derive(Clone, Copy, Debug)]
struct State {
    target: SocketAddr,
    way: Way,
    /// A connection opened before the latest cut is reset, even if the way is open again by then.
    cuts: u64,
    /// A connection opened before the latest loss is dead, without notice to either end.
    losses: u64,
}

const BUFFER: usize = 64 * 1024;

// === impl Proxy ===

impl Proxy {
    /// Starts listening. Connections before [`Self::lead_to`] are reset.
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("proxy")
            .enable_all()
            .build()
            .expect("a runtime can be built");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (state, told) =
            watch::channel(State { target: any, way: Way::Cut, cuts: 0, losses: 0 });
        let listener = runtime.block_on(TcpListener::bind(any)).expect("loopback has free ports");
        let address = listener.local_addr().expect("it listens");
        runtime.spawn(accept(listener, told));
        Self { address, state, _runtime: runtime }
    }

    /// The address that it listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on, forwards connections to `target`, and opens the way.
    pub(crate) fn lead_to(&self, target: SocketAddr) {
        self.state.send_modify(|state| (state.target, state.way) = (target, Way::Open));
    }

    /// Changes the way for all existing and new connections.
    pub(crate) fn set(&self, way: Way) {
        self.state.send_modify(|state| {
            state.way = way;
            state.cuts += u64::from(way == Way::Cut);
        });
    }

    /// Forgets all connections, like a NAT gateway or load balancer that restarts: bytes on them
    /// are lost without notice to either end. New connections work.
    pub(crate) fn forget_connections(&self) {
        self.state.send_modify(|state| state.losses += 1);
    }
}

async fn accept(listener: TcpListener, state: watch::Receiver<State>) {
    let tracker = TaskTracker::new();
    loop {
        // A client that disconnected at once is not an error.
        let Ok((client, _)) = listener.accept().await else { continue };
        let state = state.clone();
        tracker.spawn(async move {
            // Broken connections are the purpose of this proxy.
            join(client, state).await.ok();
        });
    }
}

/// Serves one connection until it ends or is cut.
async fn join(mut client: TcpStream, state: watch::Receiver<State>) -> io::Result<()> {
    let State { target, way, cuts, losses } = *state.borrow();
    if way == Way::Cut {
        return client.set_zero_linger();
    }
    let mut server = TcpStream::connect(target).await?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let mut cut = state.clone();
    let both = async {
        tokio::try_join!(
            pump(from_client, to_server, losses, state.clone()),
            pump(from_server, to_client, losses, state.clone()),
        )
    };
    let ended = tokio::select! {
        biased;
        _ = cut.wait_for(|state| state.cuts != cuts) => Err(io::ErrorKind::ConnectionReset.into()),
        ended = both => ended.map(drop),
    };
    if ended.is_err() {
        // Not a clean end: data in transit is lost.
        client.set_zero_linger()?;
        server.set_zero_linger()?;
    }
    ended
}

/// Copies one direction.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    losses: u64,
    mut state: watch::Receiver<State>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        // The sender belongs to the value that keeps this task running, so it can't be gone.
        state.wait_for(|it| it.way != Way::Stalled || it.losses != losses).await.ok();
        if state.borrow().losses != losses {
            // Its end isn't passed on either; received bytes are discarded, so that the sender
            // doesn't block.
            if length == 0 {
                std::future::pending::<()>().await;
            }
            continue;
        }
        match buffer.get(..length) {
            None | Some([]) => return to.shutdown().await,
            Some(bytes) => to.write_all(bytes).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    /// Maximum time to wait for something that must arrive.
    const LIMIT: Duration = Duration::from_secs(30);
    /// Time to wait for something that must not arrive.
    const NOTHING: Duration = Duration::from_millis(100);

    /// Both ends of a connection through an open proxy.
    fn connected() -> (Proxy, TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = Proxy::start();
        proxy.lead_to(listener.local_addr().unwrap());
        let client = TcpStream::connect(proxy.address()).unwrap();
        let (server, _) = listener.accept().unwrap();
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(LIMIT)).unwrap();
        }
        (proxy, client, server)
    }

    fn receive(stream: &mut TcpStream) -> std::io::Result<u8> {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    #[test]
    fn an_open_way_leads_there_and_back_and_to_the_end() {
        let (_proxy, mut client, mut server) = connected();
        client.write_all(b"q").unwrap();
        assert_eq!(receive(&mut server).unwrap(), b'q');
        server.write_all(b"a").unwrap();
        assert_eq!(receive(&mut client).unwrap(), b'a');
        drop(server);
        assert_eq!(receive(&mut client).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_stalled_way_holds_what_comes_and_hands_it_over_when_it_opens() {
        let (proxy, mut client, mut server) = connected();
        proxy.set(Way::Stalled);
        client.write_all(b"q").unwrap();
        server.set_read_timeout(Some(NOTHING)).unwrap();
        assert_eq!(receive(&mut server).unwrap_err().kind(), ErrorKind::WouldBlock);
        server.set_read_timeout(Some(LIMIT)).unwrap();
        proxy.set(Way::Open);
        assert_eq!(receive(&mut server).unwrap(), b'q');
    }

    #[test]
    fn a_forgotten_connection_is_silent_and_a_new_one_works() {
        let (proxy, mut client, mut server) = connected();
        proxy.forget_connections();
        client.write_all(b"q").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        server.set_read_timeout(Some(NOTHING)).unwrap();
        assert_eq!(receive(&mut server).unwrap_err().kind(), ErrorKind::WouldBlock);

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        proxy.lead_to(listener.local_addr().unwrap());
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"q").unwrap();
        assert_eq!(receive(&mut server).unwrap(), b'q');
    }

    #[test]
    fn a_cut_resets_both_ends_even_if_the_way_opens_at_once() {
        let (proxy, mut client, mut server) = connected();
        proxy.set(Way::Cut);
        proxy.set(Way::Open);
        for end in [&mut client, &mut server] {
            assert_eq!(receive(end).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
    }
}
