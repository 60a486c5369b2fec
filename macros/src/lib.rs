//! The macros of Regatta.

mod search_space;

use proc_macro::TokenStream;

/// The search space of a configuration, from the `#[space(..)]` of its fields.
///
/// See `regatta_tune::space::SearchSpace` for what a field can say.
#[proc_macro_derive(SearchSpace, attributes(space))]
pub fn search_space(input: TokenStream) -> TokenStream {
    search_space::expand(syn::parse_macro_input!(input)).unwrap_or_else(syn::Error::into_compile_error).into()
}
