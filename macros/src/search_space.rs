//! `#[derive(SearchSpace)]`: from fields and their `#[space(..)]` to the tree of `regatta_tune::space`.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{
    Attribute, Data, DeriveInput, Error, Expr, Field, Fields, GenericArgument, Ident, Lit, LitStr, Path,
    PathArguments, RangeLimits, Result, Token, Type,
};

/// The implementation of the trait for a type.
pub(crate) fn expand(input: DeriveInput) -> Result<TokenStream> {
    let serde = Serde::of(&input.attrs)?;
    let tune = crate_path(&input.attrs)?;
    let body = match &input.data {
        Data::Struct(data) => body(&data.fields, serde.rename_all.as_ref(), &tune, input.span())?,
        Data::Enum(data) => {
            let mut branches = vec![];
            for variant in &data.variants {
                let own = Serde::of(&variant.attrs)?;
                if own.skip {
                    continue;
                }
                let name = own.rename.unwrap_or_else(|| {
                    let name = variant.ident.unraw().to_string();
                    serde.rename_all.as_ref().map_or(name.clone(), |case| case.of(&words_of_pascal(&name)))
                });
                let case = own.rename_all.as_ref().or(serde.rename_all_fields.as_ref());
                let node = body(&variant.fields, case, &tune, variant.span())?;
                branches.push(quote!((::std::string::String::from(#name), #node)));
            }
            quote!(#tune::space::Node::Branch(#tune::space::Fields(::std::vec![#(#branches),*])))
        }
        Data::Union(_) => return Err(Error::new(input.span(), "a union has no search space")),
    };
    let name = &input.ident;
    // A type with parameters has no one name by which a tuner could find it.
    let known = input.generics.params.is_empty().then(|| {
        quote! {
            const _: () = {
                #tune::__private::inventory::submit! {
                    #tune::space::Known {
                        type_name: ::std::any::type_name::<#name>,
                        node: <#name as #tune::space::SearchSpace>::node,
                    }
                }
            };
        }
    });
    let (generics, types, wheres) = input.generics.split_for_impl();
    Ok(quote! {
        #known

        #[automatically_derived]
        #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
        impl #generics #tune::space::SearchSpace for #name #types #wheres {
            fn node() -> #tune::space::Node {
                #body
            }
        }
    })
}

/// The node of a struct's or a variant's fields.
fn body(fields: &Fields, case: Option<&Case>, tune: &Path, at: proc_macro2::Span) -> Result<TokenStream> {
    match fields {
        Fields::Unit => Ok(quote!(#tune::space::Node::Unit)),
        Fields::Unnamed(fields) if fields.unnamed.len() == 1 => node(&fields.unnamed[0], tune),
        Fields::Unnamed(_) => Err(Error::new(at, "a search space wants named fields: give these names")),
        Fields::Named(fields) => {
            let mut named = vec![];
            for field in &fields.named {
                let serde = Serde::of(&field.attrs)?;
                if serde.skip {
                    continue;
                }
                let name = serde.rename.unwrap_or_else(|| {
                    let name = field.ident.as_ref().map(|i| i.unraw().to_string()).unwrap_or_default();
                    case.map_or(name.clone(), |case| case.of(&words_of_snake(&name)))
                });
                let node = node(field, tune)?;
                named.push(quote!((::std::string::String::from(#name), #node)));
            }
            Ok(quote!(#tune::space::Node::Struct(#tune::space::Fields(::std::vec![#(#named),*]))))
        }
    }
}

/// The node of one field.
fn node(field: &Field, tune: &Path) -> Result<TokenStream> {
    let ty = &field.ty;
    let Some(attribute) = field.attrs.iter().find(|a| a.path().is_ident("space")) else {
        return Ok(quote_spanned!(ty.span()=> <#ty as #tune::space::SearchSpace>::node()));
    };
    let how = attribute.parse_args_with(How::parse)?;
    let wrong = |text: &str| Err(Error::new(attribute.span(), text));
    if !matches!(how.kind, Some(Kind::Range(..))) && (how.log || how.step.is_some()) {
        return wrong("`log` and `step` go with a range: #[space(1e-4..=1e-1, log)]");
    }
    let Some(kind) = how.kind else {
        return wrong("say how the field is searched: a range, `choice`, `grid`, `normal` or `fixed`");
    };
    Ok(match kind {
        Kind::Range(low, high) => {
            let (ty, log) = (inner(ty), how.log);
            let step = match how.step {
                Some(step) => quote!(::std::option::Option::Some((#step) as #ty)),
                None => quote!(::std::option::Option::None),
            };
            quote_spanned!(ty.span()=>
                <#ty as #tune::space::Number>::between((#low) as #ty, (#high) as #ty, #log, #step))
        }
        Kind::Choice(values) => quote!(#tune::space::choice(#values)),
        Kind::Grid(values) => {
            let values = array(&values)?;
            quote!(#tune::space::grid([#((#values) as f64),*]))
        }
        Kind::Normal(values) => {
            let Expr::Tuple(pair) = &values else { return wrong("write normal = (mean, deviation)") };
            let values: Vec<&Expr> = pair.elems.iter().collect();
            let [mean, deviation] = values[..] else { return wrong("write normal = (mean, deviation)") };
            quote!(#tune::space::normal((#mean) as f64, (#deviation) as f64))
        }
        Kind::Fixed(Some(value)) => quote!(#tune::space::fixed(#value)),
        Kind::Fixed(None) => quote!(#tune::space::Node::Keep),
    })
}

fn array(values: &Expr) -> Result<Vec<&Expr>> {
    match values {
        Expr::Array(array) => Ok(array.elems.iter().collect()),
        other => Err(Error::new(other.span(), "write grid = [1, 2, 4]")),
    }
}

/// The type itself, or what an `Option` holds: a searched field always has a value.
fn inner(ty: &Type) -> &Type {
    if let Type::Path(path) = ty
        && let Some(last) = path.path.segments.last()
        && last.ident == "Option"
        && let PathArguments::AngleBracketed(arguments) = &last.arguments
        && let Some(GenericArgument::Type(inner)) = arguments.args.first()
    {
        return inner;
    }
    ty
}

/// What a `#[space(..)]` says.
#[derive(Default)]
struct How {
    kind: Option<Kind>,
    log: bool,
    step: Option<Expr>,
}

enum Kind {
    Range(Box<Expr>, Box<Expr>),
    Choice(Expr),
    Grid(Expr),
    Normal(Expr),
    Fixed(Option<Expr>),
}

impl Parse for How {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut how = Self::default();
        while !input.is_empty() {
            let at = input.span();
            if input.peek(Ident) && input.peek2(Token![=]) {
                let key: Ident = input.parse()?;
                input.parse::<Token![=]>()?;
                let value: Expr = input.parse()?;
                match key.to_string().as_str() {
                    "step" => how.step = Some(value),
                    "choice" => how.kind(Kind::Choice(value), at)?,
                    "grid" => how.kind(Kind::Grid(value), at)?,
                    "normal" => how.kind(Kind::Normal(value), at)?,
                    "fixed" => how.kind(Kind::Fixed(Some(value)), at)?,
                    other => return Err(unknown(other, at)),
                }
            } else {
                match input.parse::<Expr>()? {
                    Expr::Path(path) if path.path.is_ident("log") => how.log = true,
                    Expr::Path(path) if path.path.is_ident("fixed") => how.kind(Kind::Fixed(None), at)?,
                    Expr::Range(range) => match (range.start, range.limits, range.end) {
                        (Some(low), RangeLimits::Closed(_), Some(high)) => {
                            how.kind(Kind::Range(low, high), at)?
                        }
                        _ => return Err(Error::new(at, "a range has both its ends: write low..=high")),
                    },
                    other => return Err(unknown(&quote!(#other).to_string(), at)),
                }
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(how)
    }
}

impl How {
    fn kind(&mut self, kind: Kind, at: proc_macro2::Span) -> Result<()> {
        if self.kind.is_some() {
            return Err(Error::new(at, "the field is searched in one way only"));
        }
        self.kind = Some(kind);
        Ok(())
    }
}

fn unknown(what: &str, at: proc_macro2::Span) -> Error {
    Error::new(at, format!("`{what}` is none of: low..=high, log, step, choice, grid, normal, fixed"))
}

/// Where the crate of the trait is: behind the facade, unless the container says `#[space(crate = "..")]`.
fn crate_path(attributes: &[Attribute]) -> Result<Path> {
    let mut path: Path = syn::parse_quote!(::regatta::tune);
    for attribute in attributes.iter().filter(|a| a.path().is_ident("space")) {
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("crate") {
                return Err(
                    meta.error("a type takes #[space(crate = \"..\")]; the rest belongs on its fields")
                );
            }
            path = meta.value()?.parse::<LitStr>()?.parse()?;
            Ok(())
        })?;
    }
    Ok(path)
}

/// What serde's attributes change about names.
#[derive(Default)]
struct Serde {
    rename: Option<String>,
    rename_all: Option<Case>,
    rename_all_fields: Option<Case>,
    skip: bool,
}

impl Serde {
    fn of(attributes: &[Attribute]) -> Result<Self> {
        let mut serde = Self::default();
        for attribute in attributes.iter().filter(|a| a.path().is_ident("serde")) {
            attribute.parse_nested_meta(|meta| {
                let text = |meta: &syn::meta::ParseNestedMeta<'_>| {
                    Ok::<_, Error>(meta.value()?.parse::<LitStr>()?.value())
                };
                let name = meta.path.get_ident().map(Ident::to_string).unwrap_or_default();
                match name.as_str() {
                    "rename" if meta.input.peek(Token![=]) => serde.rename = Some(text(&meta)?),
                    "rename_all" if meta.input.peek(Token![=]) => serde.rename_all = Some(Case::new(&text(&meta)?)),
                    "rename_all_fields" if meta.input.peek(Token![=]) => {
                        serde.rename_all_fields = Some(Case::new(&text(&meta)?));
                    }
                    "skip" => serde.skip = true,
                    "rename" | "rename_all" | "rename_all_fields" | "flatten" | "tag" | "content" | "untagged" => {
                        return Err(meta.error(format!(
                            "a search space cannot follow serde's `{name}` here: its tree is shaped as serde is by default"
                        )));
                    }
                    _ if meta.input.peek(Token![=]) => drop(meta.value()?.parse::<Lit>()?),
                    _ if meta.input.peek(syn::token::Paren) => {
                        let inside;
                        syn::parenthesized!(inside in meta.input);
                        inside.parse_terminated(syn::Meta::parse, Token![,]).map(|_: Punctuated<_, _>| ())?;
                    }
                    _ => {}
                }
                Ok(())
            })?;
        }
        Ok(serde)
    }
}

/// One of serde's cases, by its own spelling of itself.
struct Case(String);

impl Case {
    fn new(text: &str) -> Self {
        Self(text.into())
    }

    fn of(&self, words: &[String]) -> String {
        let title = |word: &String| {
            let mut letters = word.chars();
            letters.next().map(|c| c.to_uppercase().chain(letters).collect::<String>()).unwrap_or_default()
        };
        match self.0.as_str() {
            "lowercase" => words.concat(),
            "UPPERCASE" => words.concat().to_uppercase(),
            "PascalCase" => words.iter().map(title).collect(),
            "camelCase" => {
                words.iter().enumerate().map(|(i, w)| if i == 0 { w.clone() } else { title(w) }).collect()
            }
            "SCREAMING_SNAKE_CASE" => words.join("_").to_uppercase(),
            "kebab-case" => words.join("-"),
            "SCREAMING-KEBAB-CASE" => words.join("-").to_uppercase(),
            // snake_case; anything else serde itself refuses.
            _ => words.join("_"),
        }
    }
}

fn words_of_snake(name: &str) -> Vec<String> {
    name.split('_').map(str::to_owned).collect()
}

/// As serde does it: every capital starts a word.
fn words_of_pascal(name: &str) -> Vec<String> {
    let mut words: Vec<String> = vec![];
    for letter in name.chars() {
        if letter.is_uppercase() || words.is_empty() {
            words.push(String::new());
        }
        words.last_mut().expect("just pushed").extend(letter.to_lowercase());
    }
    words
}
