//! What the planner is told of the search functions: as many rows as were asked for. Nothing goes over the network here.

use pgrx::prelude::*;
use pgrx::{Internal, PgList, pg_sys};

/// Rows that a search is thought to give when `size` is known only at run time.
const UNKNOWN_ROWS: f64 = 100.0;

/// Support function of the set-returning search functions: their row estimate is their `size`, the only argument of type
/// `integer` that they have.
#[pg_extern(immutable, parallel_safe, schema = "fanout")]
fn search_support(request: Internal) -> Internal {
    let not_handled = Internal::from(Some(pg_sys::Datum::from(0_usize)));
    let Some(datum) = request.unwrap() else { return not_handled };
    let node = datum.cast_mut_ptr::<pg_sys::SupportRequestRows>();
    // SAFETY: the planner passes a node; its tag is read before it is taken for a request of that kind. The function's
    // node is looked at only if it is a FuncExpr, whose arguments are complete and in order by now.
    unsafe {
        if node.is_null() || (*node).type_ != pg_sys::NodeTag::T_SupportRequestRows {
            return not_handled;
        }
        let call = (*node).node;
        if call.is_null() || (*call).type_ != pg_sys::NodeTag::T_FuncExpr {
            return not_handled;
        }
        let arguments = PgList::<pg_sys::Node>::from_pg((*call.cast::<pg_sys::FuncExpr>()).args);
        let size = arguments.iter_ptr().find(|argument| pg_sys::exprType(*argument) == pg_sys::INT4OID);
        let Some(size) = size else { return not_handled };
        let size = pg_sys::estimate_expression_value((*node).root, size);
        (*node).rows = UNKNOWN_ROWS;
        if (*size).type_ == pg_sys::NodeTag::T_Const {
            let constant = size.cast::<pg_sys::Const>();
            if !(*constant).constisnull {
                (*node).rows = f64::from((*constant).constvalue.value() as i32).clamp(1.0, 10_000.0);
            }
        }
    }
    Internal::from(Some(datum))
}
