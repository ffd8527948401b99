//! Placeholder while the table is being written.
pub struct Style;
impl Style {
    pub fn detect(_: bool) -> Self {
        Self
    }
}
pub fn render(_: &crate::admin::Status, _: Style) -> String {
    String::new()
}
