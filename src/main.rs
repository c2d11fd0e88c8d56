//! Starts the runtime and hands over to the command line.

use std::io;
use std::io::Write as _;

use signal_hook::low_level;

fn main() -> ! {
    // Two: one may be busy with decoding while the other sends requests.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let code = match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(agora_rtm_bridge::cli::main());
            // A question to a broker that doesn't answer must not hold the process.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            eprintln!("agora-rtm-bridge: start the runtime: {error}");
            1
        }
    };
    io::stdout().flush().ok();
    // `_exit`, not `exit`: OpenSSL's exit handler frees what the threads of a Kafka client that is
    // still being closed are using.
    low_level::exit(code.into())
}
