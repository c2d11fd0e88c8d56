//! Starts the runtime and hands over to the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Two: one may be busy with decoding while the other sends requests.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(agora_rtm_bridge::cli::main());
            // A question to a broker that does not answer must not hold the process.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            eprintln!("agora-rtm-bridge: start the runtime: {error}");
            ExitCode::FAILURE
        }
    }
}
