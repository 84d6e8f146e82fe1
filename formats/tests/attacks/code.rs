//! Pickles that run code when Python loads them. Here they are data: nothing runs, the names of
//! what would have been called are listed, and tensors beside them are read.

use formats::Dtype;
use formats::pickle::Emitter;

use crate::files::{pickle, torch_zip};
use crate::harness::{Opened, open};

/// Opens a checkpoint that holds a good tensor beside a payload that would create a file.
fn inert(payload: impl Fn(&mut Emitter, &str)) -> Opened {
    let folder = tempfile::tempdir().unwrap();
    let marker = folder.path().join("marker");
    let command = format!("touch {}", marker.display());
    let object = pickle(|p| {
        p.empty_dict().mark().str("state_dict").empty_dict().mark();
        p.str("w").tensor(Dtype::F32, "0", &[2]).set_items();
        p.str("payload");
        payload(p, &command);
        p.set_items();
    });
    let opened = open(&torch_zip(&object, &[("0", &[0; 8])])).opened();
    assert!(!marker.exists(), "the payload ran");
    assert_eq!(opened.tensors.len(), 1);
    opened
}

#[test]
fn os_system_is_a_name() {
    let opened = inert(|p, command| {
        p.global("posix", "system").mark().str(command).tuple().reduce();
    });
    assert!(opened.globals.contains(&"posix.system".into()), "{:?}", opened.globals);
}

#[test]
fn eval_and_exec_are_names() {
    for name in ["eval", "exec"] {
        let opened = inert(|p, command| {
            let code = format!("__import__('os').system('{command}')");
            p.global("__builtin__", name).mark().str(&code).tuple().reduce();
        });
        assert!(opened.globals.contains(&format!("builtins.{name}")), "{:?}", opened.globals);
    }
}

#[test]
fn a_chain_of_reduce_is_data() {
    // getattr(__import__('os'), 'system')(command)
    let opened = inert(|p, command| {
        p.global("builtins", "getattr").mark();
        p.global("builtins", "__import__").mark().str("os").tuple().reduce();
        p.str("system").tuple().reduce();
        p.mark().str(command).tuple().reduce();
    });
    for name in ["builtins.getattr", "builtins.__import__"] {
        assert!(opened.globals.contains(&name.into()), "{:?}", opened.globals);
    }
}

#[test]
fn every_opcode_that_constructs_is_inert() {
    // NEWOBJ, INST, OBJ, STACK_GLOBAL, NEWOBJ_EX, and BUILD, which may call __setstate__.
    type Way = dyn Fn(&mut Emitter, &str);
    let ways: [&Way; 6] = [
        &|p, command| {
            p.global("subprocess", "Popen").mark().str(command).tuple().new_object();
        },
        &|p, command| {
            p.mark().str(command).raw(b"isubprocess\nPopen\n");
        },
        &|p, command| {
            p.mark().global("subprocess", "Popen").str(command).raw(b"o");
        },
        &|p, command| {
            p.str("subprocess").str("Popen").raw(b"\x93").mark().str(command).tuple().reduce();
        },
        &|p, command| {
            p.global("subprocess", "Popen").mark().str(command).tuple().empty_dict().raw(b"\x92");
        },
        &|p, command| {
            p.global("subprocess", "Popen").empty_tuple().reduce().str(command).build();
        },
    ];
    for way in ways {
        let opened = inert(way);
        assert!(opened.globals.contains(&"subprocess.Popen".into()), "{:?}", opened.globals);
    }
}

#[test]
fn a_payload_in_the_place_of_a_tensor_is_no_tensor() {
    // The callable of a tensor, its hooks, its state: nothing of it is called.
    let opened = inert(|p, command| {
        p.global("torch._utils", "_rebuild_parameter").mark();
        p.tensor(Dtype::F32, "0", &[2]).bool(true);
        p.global("posix", "system").mark().str(command).tuple().reduce();
        p.tuple().reduce();
    });
    assert!(opened.globals.contains(&"posix.system".into()), "{:?}", opened.globals);
}

#[test]
fn a_payload_in_an_old_file_is_data() {
    let folder = tempfile::tempdir().unwrap();
    let marker = folder.path().join("marker");
    let object = pickle(|p| {
        p.global("posix", "system").mark().str(&format!("touch {}", marker.display())).tuple().reduce();
    });
    let opened = open(&crate::files::legacy(&object, &[], &[])).opened();
    assert_eq!(opened.globals, ["posix.system"]);
    // The magic number's place, too.
    let opened = open(&object).opened();
    assert_eq!(opened.globals, ["posix.system"]);
    assert!(!marker.exists(), "the payload ran");
}

#[test]
fn hidden_names_are_listed() {
    // A global that is popped, and one that is only in the memo.
    let opened = inert(|p, _| {
        p.global("posix", "system").raw(b"0");
        p.global("nt", "system").put(7).raw(b"0").none();
    });
    for name in ["posix.system", "nt.system"] {
        assert!(opened.globals.contains(&name.into()), "{:?}", opened.globals);
    }
}
