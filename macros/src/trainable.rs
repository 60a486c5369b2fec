//! `#[trainable]`: leaves the function as it is and puts an entry beside it into the program's registry.

use proc_macro2::TokenStream;
use quote::quote;
use syn::spanned::Spanned;
use syn::{Error, FnArg, ItemFn, LitStr, Path, Result, ReturnType, Type};

const FORM: &str = "a trainable is `fn name(ctx: &mut TrainContext, config: Config) -> Result<T>`";

/// What stands in `#[trainable(..)]`.
struct Options {
    name: Option<LitStr>,
    root: Path,
}

fn options(tokens: TokenStream) -> Result<Options> {
    let mut options = Options { name: None, root: syn::parse_quote!(::regatta) };
    let parser = syn::meta::parser(|meta| {
        if meta.path.is_ident("name") {
            options.name = Some(meta.value()?.parse()?);
        } else if meta.path.is_ident("crate") {
            options.root = meta.value()?.call(Path::parse_mod_style)?;
        } else {
            return Err(meta.error("there is `name = \"...\"` and `crate = path`"));
        }
        Ok(())
    });
    syn::parse::Parser::parse2(parser, tokens)?;
    Ok(options)
}

pub(crate) fn expand(tokens: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let Options { name, root } = options(tokens)?;
    let function: ItemFn = syn::parse2(item.clone())
        .map_err(|error| Error::new(error.span(), format!("{FORM}; this is no function: {error}")))?;
    let config = check(&function)?;
    let ident = &function.sig.ident;
    let name = name.unwrap_or_else(|| LitStr::new(&ident.to_string(), ident.span()));
    if name.value().is_empty() {
        return Err(Error::new(name.span(), "a trainable needs a name"));
    }
    let train = quote!(#root::__private::train);
    let (config, call) = match config {
        Some(config) => (quote!(#config), quote!(#ident)),
        None => (
            quote!(#train::registry::NoConfig),
            quote!(|context: &mut #train::TrainContext, _: #train::registry::NoConfig| #ident(context)),
        ),
    };
    Ok(quote! {
        #function

        const _: () = {
            #train::__private::inventory::submit! {
                #train::registry::Registration {
                    name: #name,
                    type_name: || ::std::any::type_name_of_val(&#ident),
                    config: ::std::any::type_name::<#config>,
                    run: |context, config| #train::registry::run(#call, context, config),
                    normalise: #train::registry::normalise::<#config>,
                    parse: #train::registry::parse::<#config>,
                    write: #train::registry::write::<#config>,
                }
            }
        };
    })
}

/// Checks the signature and returns the configuration's type.
fn check(function: &ItemFn) -> Result<Option<&Type>> {
    let signature = &function.sig;
    if let Some(token) = &signature.asyncness {
        return Err(Error::new(
            token.span(),
            "a trainable runs on its worker's main thread and cannot be async; make a runtime inside of it",
        ));
    }
    if let Some(parameter) =
        signature.generics.params.iter().find(|p| !matches!(p, syn::GenericParam::Lifetime(_)))
    {
        return Err(Error::new(
            parameter.span(),
            "a trainable cannot be generic: its worker finds it by its name alone; write one function for each type",
        ));
    }
    if let ReturnType::Default = signature.output {
        return Err(Error::new(
            signature.span(),
            format!("{FORM}; this one returns nothing: let it return `Result<()>`"),
        ));
    }
    let mut inputs = signature.inputs.iter();
    match inputs.next() {
        Some(FnArg::Typed(argument)) if is_context(&argument.ty) => {}
        Some(other) => {
            return Err(Error::new(
                other.span(),
                format!("{FORM}; the first argument is to be `ctx: &mut TrainContext`"),
            ));
        }
        None => return Err(Error::new(signature.span(), format!("{FORM}; this one takes no context"))),
    }
    let config = match inputs.next() {
        None => return Ok(None),
        Some(FnArg::Typed(argument)) => &*argument.ty,
        Some(other) => return Err(Error::new(other.span(), FORM)),
    };
    if let Type::Reference(reference) = config {
        return Err(Error::new(
            reference.span(),
            "the configuration is given to the trainable by value: write `config: Config`",
        ));
    }
    match inputs.next() {
        None => Ok(Some(config)),
        Some(third) => Err(Error::new(
            third.span(),
            format!("{FORM}; a third argument has no meaning: put what it needs into the configuration"),
        )),
    }
}

fn is_context(ty: &Type) -> bool {
    let Type::Reference(reference) = ty else { return false };
    reference.mutability.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(options: TokenStream, item: TokenStream) -> String {
        expand(options, item).unwrap_err().to_string()
    }

    #[test]
    fn a_wrong_signature_is_told_what_would_be_right() {
        let told = |item| error(TokenStream::new(), item);
        assert!(
            told(quote!(
                struct S;
            ))
            .contains("no function")
        );
        assert!(
            told(quote!(
                fn f() -> Result<()> {
                    Ok(())
                }
            ))
            .contains("takes no context")
        );
        assert!(
            told(quote!(
                fn f(ctx: TrainContext) -> Result<()> {
                    Ok(())
                }
            ))
            .contains("&mut TrainContext")
        );
        assert!(
            told(quote!(
                fn f(ctx: &TrainContext) -> Result<()> {
                    Ok(())
                }
            ))
            .contains("&mut TrainContext")
        );
        assert!(
            told(quote!(
                fn f(&mut self) -> Result<()> {
                    Ok(())
                }
            ))
            .contains("first argument")
        );
        assert!(
            told(quote!(
                fn f(ctx: &mut TrainContext) {}
            ))
            .contains("returns nothing")
        );
        assert!(
            told(quote!(
                async fn f(ctx: &mut TrainContext) -> Result<()> {
                    Ok(())
                }
            ))
            .contains("async")
        );
        assert!(
            told(quote!(
                fn f<T>(ctx: &mut TrainContext, c: T) -> Result<()> {
                    Ok(())
                }
            ))
            .contains("generic")
        );
        assert!(
            told(quote!(
                fn f(ctx: &mut TrainContext, c: &C) -> Result<()> {
                    Ok(())
                }
            ))
            .contains("by value")
        );
        assert!(
            told(quote!(
                fn f(ctx: &mut TrainContext, c: C, d: D) -> Result<()> {
                    Ok(())
                }
            ))
            .contains("third")
        );
        let fine = quote!(
            fn f(ctx: &mut TrainContext) -> Result<()> {
                Ok(())
            }
        );
        assert!(error(quote!(nmae = "x"), fine.clone()).contains("there is `name"));
        assert!(error(quote!(name = ""), fine).contains("needs a name"));
    }

    #[test]
    fn the_function_stays_as_it_is_and_its_entry_follows() {
        let item = quote!(
            pub fn f(ctx: &mut TrainContext, c: C) -> Result<u8> {
                Ok(1)
            }
        );
        let text = expand(quote!(name = "other", crate = regatta_train), item.clone()).unwrap().to_string();
        assert!(text.starts_with(&item.to_string()), "{text}");
        assert!(
            text.contains("name : \"other\"") && text.contains("regatta_train :: __private :: train"),
            "{text}"
        );
        let alone = expand(
            quote!(),
            quote!(
                fn g(ctx: &mut TrainContext) -> Result<()> {
                    Ok(())
                }
            ),
        )
        .unwrap()
        .to_string();
        assert!(alone.contains("NoConfig") && alone.contains(":: regatta ::"), "{alone}");
    }
}
