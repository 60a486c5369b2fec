//! The macros of Regatta. They are used through the `regatta` crate; what they write refers to `::regatta` unless told
//! otherwise.

mod search_space;
mod trainable;

use proc_macro::TokenStream;

/// Makes a function a trainable: it stays what it is, and the program's command line and worker processes find it by its
/// name.
///
/// It takes `&mut TrainContext` and, if it has one, its configuration, which serde can read and write; it returns a
/// `Result` of any value that serde can write and any error that can be boxed, `anyhow`'s included.
///
/// ```ignore
/// #[regatta::trainable]
/// fn resnet(ctx: &mut TrainContext, cfg: Config) -> Result<()> { .. }
/// ```
///
/// `#[trainable(name = "resnet18")]` gives it another name than its own. `#[trainable(crate = regatta_train)]` is for
/// programs that use the trainer without the `regatta` crate.
#[proc_macro_attribute]
pub fn trainable(options: TokenStream, item: TokenStream) -> TokenStream {
    trainable::expand(options.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// The search space of a configuration, from the `#[space(..)]` of its fields.
///
/// See `regatta_tune::space::SearchSpace` for what a field can say.
#[proc_macro_derive(SearchSpace, attributes(space))]
pub fn search_space(input: TokenStream) -> TokenStream {
    search_space::expand(syn::parse_macro_input!(input)).unwrap_or_else(syn::Error::into_compile_error).into()
}
