//! A crate's source files as the circle tests see them: which file defines what, and which file names what.
//!
//! Names are looked up by paths alone, as `use` lines, paths and macros' arguments spell them. What only the compiler
//! knows isn't seen: a method call on a value whose type the file never names draws no arrow.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    spanned::Spanned as _,
    visit::{self, Visit},
};

/// Re-exports are followed this far. A crate that re-exports more deeply hides a loop.
const MAX_REEXPORTS: u32 = 16;

/// A module's place in its crate: `["driver", "hosts"]`.
type ModulePath = Vec<String>;

/// A path that a file names, split at `::`.
type Named = Vec<String>;

/// One arrow per pair of files, with a name that draws it.
pub(crate) type Arrows<'a> = BTreeMap<&'a Path, BTreeMap<&'a Path, String>>;

/// A module of the crate: a file, or an inline module of one.
#[derive(Debug, Default)]
struct Module {
    file: PathBuf,
    /// Names that `use` lines bring in, with the paths that they stand for.
    aliases: BTreeMap<String, Named>,
    /// Modules whose names are all brought in by `use module::*`.
    globs: Vec<Named>,
    /// Items that the module defines.
    defines: BTreeSet<String>,
    /// Paths that the module's code names.
    names: BTreeSet<Named>,
    /// Types that get methods here: the paths after `impl`, without traits' implementations.
    extends: BTreeSet<Named>,
    /// The functions with bodies, and their lines from `fn` to the last brace.
    functions: Vec<(String, usize)>,
}

/// All modules of a crate, without its test code.
#[derive(Debug, Default)]
pub(crate) struct Crate {
    modules: BTreeMap<ModulePath, Module>,
}

impl Crate {
    /// Reads a crate's files from its `lib.rs` or `main.rs` on.
    ///
    /// # Panics
    /// A file that a `mod` line names can't be read, or isn't Rust.
    pub(crate) fn read(sources: &Path) -> Self {
        let mut read = Self::default();
        for start in ["lib.rs", "main.rs"] {
            if sources.join(start).exists() {
                read.file(&sources.join(start), &Vec::new(), sources);
                break;
            }
        }
        read
    }

    /// Whether nothing was found: a wrong path.
    pub(crate) fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// The functions with bodies, each with its file and its lines.
    pub(crate) fn functions(&self) -> impl Iterator<Item = (&Path, &str, usize)> {
        self.modules.values().flat_map(|module| {
            let file = module.file.as_path();
            let functions = module.functions.iter();
            functions.map(move |(name, lines)| (file, name.as_str(), *lines))
        })
    }

    fn file(&mut self, file: &Path, module: &ModulePath, children: &Path) {
        let text =
            fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let parsed =
            syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.items(&parsed.items, file, module, children);
    }

    fn items(&mut self, items: &[syn::Item], file: &Path, module: &ModulePath, children: &Path) {
        let mut found = Module {
            file: file.to_owned(),
            ..Module::default()
        };
        for item in items {
            if is_test(attributes(item)) {
                continue;
            }
            found.defines.extend(defined(item));
            match item {
                syn::Item::Mod(inner) => self.submodule(inner, file, module, children),
                syn::Item::Use(line) => found.take_use(line),
                other => {
                    if let syn::Item::Impl(block) = other {
                        found.extends.extend(extended(block));
                    }
                    Reader { module: &mut found }.visit_item(other);
                }
            }
        }
        self.modules.insert(module.clone(), found);
    }

    fn submodule(
        &mut self,
        inner: &syn::ItemMod,
        file: &Path,
        module: &ModulePath,
        children: &Path,
    ) {
        let name = inner.ident.to_string();
        let mut path = module.clone();
        path.push(name.clone());
        let below = children.join(&name);
        match &inner.content {
            Some((_, items)) => self.items(items, file, &path, &below),
            // one file per system under the same module name: the first one that is named counts
            None if self.modules.contains_key(&path) => {}
            None => {
                let plain = elsewhere(&inner.attrs).map_or_else(
                    || children.join(format!("{name}.rs")),
                    |given| file.with_file_name(given),
                );
                let next = if plain.exists() {
                    plain
                } else {
                    below.join("mod.rs")
                };
                self.file(&next, &path, &below);
            }
        }
    }

    /// The module that defines what a path names, seen from the module `from`. `None` for names of other crates.
    fn find(&self, from: &ModulePath, path: &[String], depth: u32) -> Option<ModulePath> {
        if depth > MAX_REEXPORTS {
            return None;
        }
        let (first, rest) = path.split_first()?;
        let (mut at, rest) = match first.as_str() {
            "crate" => (Vec::new(), rest),
            "self" => (from.clone(), rest),
            "super" => (from[..from.len().checked_sub(1)?].to_vec(), rest),
            _ => (from.clone(), path),
        };
        let relative = rest.len() == path.len();
        for (done, segment) in rest.iter().enumerate() {
            if segment == "super" {
                at.pop()?;
                continue;
            }
            let child: ModulePath = at.iter().chain([segment]).cloned().collect();
            if self.modules.contains_key(&child) {
                at = child;
                continue;
            }
            let module = self.modules.get(&at)?;
            if let Some(real) = module.aliases.get(segment) {
                let mut real = real.clone();
                real.extend(rest[done + 1..].iter().cloned());
                if real != path || at != *from {
                    return self.find(&at, &real, depth + 1);
                }
            }
            if module.defines.contains(segment) {
                return Some(at);
            }
            for glob in &module.globs {
                let mut through = glob.clone();
                through.extend(rest[done..].iter().cloned());
                if let Some(found) = self.find(&at, &through, depth + 1) {
                    return Some(found);
                }
            }
            // a lone unknown name is of another crate; an unknown name in a known module was made by a macro
            return ((!relative || done > 0) && depth == 0).then_some(at);
        }
        (!rest.is_empty() || !relative).then_some(at)
    }

    /// Which file names items of which other file of the crate.
    pub(crate) fn arrows(&self) -> Arrows<'_> {
        let mut arrows = Arrows::new();
        for (path, module) in &self.modules {
            let named = module
                .names
                .iter()
                .chain(module.aliases.values())
                .chain(&module.globs);
            let from = arrows.entry(&module.file).or_default();
            for name in named {
                let Some(to) = self.find(path, name, 0) else {
                    continue;
                };
                let to = self.modules[&to].file.as_path();
                if to != module.file {
                    from.entry(to).or_insert_with(|| name.join("::"));
                }
            }
        }
        arrows
    }

    /// Types that get methods outside of the file that defines them: where, the type, and its own file.
    pub(crate) fn spread_types(&self) -> Vec<(&Path, String, &Path)> {
        let mut spread = Vec::new();
        for (path, module) in &self.modules {
            for name in &module.extends {
                let Some(home) = self.find(path, name, 0) else {
                    continue;
                };
                let home = self.modules[&home].file.as_path();
                if home != module.file {
                    spread.push((module.file.as_path(), name.join("::"), home));
                }
            }
        }
        spread
    }
}

impl Module {
    fn take_use(&mut self, line: &syn::ItemUse) {
        let mut pending = vec![(Vec::new(), &line.tree)];
        while let Some((mut path, tree)) = pending.pop() {
            match tree {
                syn::UseTree::Path(inner) => {
                    path.push(inner.ident.to_string());
                    pending.push((path, &inner.tree));
                }
                syn::UseTree::Name(name) => {
                    let name = name.ident.to_string();
                    let known = if name == "self" {
                        path.last().cloned().unwrap_or_default()
                    } else {
                        path.push(name.clone());
                        name
                    };
                    self.aliases.insert(known, path);
                }
                syn::UseTree::Rename(name) => {
                    path.push(name.ident.to_string());
                    let known = if name.rename == "_" {
                        path.join("::")
                    } else {
                        name.rename.to_string()
                    };
                    self.aliases.insert(known, path);
                }
                syn::UseTree::Glob(_) => self.globs.push(path),
                syn::UseTree::Group(group) => {
                    pending.extend(group.items.iter().map(|tree| (path.clone(), tree)));
                }
            }
        }
    }

    /// Takes the paths of a macro's arguments: runs of identifiers with `::` between them.
    fn take_tokens(&mut self, tokens: TokenStream) {
        let mut path: Named = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    if colons != 2 && !path.is_empty() {
                        self.names.insert(std::mem::take(&mut path));
                    }
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' && !path.is_empty() => colons += 1,
                other => {
                    if let TokenTree::Group(group) = other {
                        self.take_tokens(group.stream());
                    }
                    if !path.is_empty() {
                        self.names.insert(std::mem::take(&mut path));
                    }
                    colons = 0;
                }
            }
        }
        if !path.is_empty() {
            self.names.insert(path);
        }
    }
}

/// Collects the paths of an item's code.
struct Reader<'a> {
    module: &'a mut Module,
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.module.names.insert(segments(path));
        visit::visit_path(self, path);
    }

    /// `pub(crate)` and `pub(super)` hold a path, but need nothing of that module.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_item_use(&mut self, line: &'ast syn::ItemUse) {
        self.module.take_use(line);
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        self.visit_path(&called.path);
        self.module.take_tokens(called.tokens.clone());
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.take_function(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_test(&function.attrs) {
            self.take_function(&function.sig, &function.block);
            visit::visit_impl_item_fn(self, function);
        }
    }
}

impl Reader<'_> {
    fn take_function(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let (first, last) = (signature.span().start().line, body.span().end().line);
        let function = (signature.ident.to_string(), last + 1 - first);
        self.module.functions.push(function);
    }
}

fn segments(path: &syn::Path) -> Named {
    let segments = path.segments.iter();
    segments.map(|segment| segment.ident.to_string()).collect()
}

/// The type that a block of methods extends. `None` for a trait's implementation.
fn extended(block: &syn::ItemImpl) -> Option<Named> {
    match (&block.trait_, block.self_ty.as_ref()) {
        (None, syn::Type::Path(extended)) => Some(segments(&extended.path)),
        _ => None,
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Path>()
                .is_ok_and(|path| path.is_ident("test"))
    })
}

/// The file that `#[path = "..."]` names.
fn elsewhere(attributes: &[syn::Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| {
        let syn::Meta::NameValue(meta) = &attribute.meta else {
            return None;
        };
        match &meta.value {
            syn::Expr::Lit(value) if meta.path.is_ident("path") => match &value.lit {
                syn::Lit::Str(text) => Some(text.value()),
                _ => None,
            },
            _ => None,
        }
    })
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn defined(item: &syn::Item) -> Option<String> {
    let name = match item {
        syn::Item::Const(item) => &item.ident,
        syn::Item::Enum(item) => &item.ident,
        syn::Item::Fn(item) => &item.sig.ident,
        syn::Item::Macro(item) => item.ident.as_ref()?,
        syn::Item::Static(item) => &item.ident,
        syn::Item::Struct(item) => &item.ident,
        syn::Item::Trait(item) => &item.ident,
        syn::Item::Type(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}
