//! Placeholder while the demo is being written.
pub struct Options {
    pub listen: Option<String>,
    pub json: bool,
    pub duration: Option<std::time::Duration>,
    pub stop: tokio_util::sync::CancellationToken,
}
pub async fn run(_: Options) -> anyhow::Result<()> {
    Ok(())
}
