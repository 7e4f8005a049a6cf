"""The handler of XLA's calls, in LLVM's language: one more entry in the machine code of a kernel.

It finds the arrays in XLA's call frame, by offsets; so it is used only where `ffi` finds the frame as it was when these
offsets were written. It works in XLA's own pool of threads, and fills a kernel's parameter block by a plan of `xla`.
"""

from __future__ import annotations

__all__ = ["HANDLER"]

HANDLER = """
declare ptr @malloc(i64)
declare void @free(ptr)

@polyloss_wrong_frame = private constant [53 x i8] c"polyloss: XLA's call frame is not as it was expected\\00"

define void @polyloss_release(ptr %state) {
  %count = getelementptr i64, ptr %state, i64 3
  %before = atomicrmw sub ptr %count, i64 1 acq_rel
  %last = icmp eq i64 %before, 1
  br i1 %last, label %free, label %end
free:
  call void @free(ptr %state)
  br label %end
end:
  ret void
}

define void @polyloss_task(ptr %state) {
  %blocks.at = getelementptr i64, ptr %state, i64 4
  %blocks = load i64, ptr %blocks.at
  %parts.at = getelementptr i64, ptr %state, i64 5
  %parts = load i64, ptr %parts.at
  %fields = getelementptr i64, ptr %state, i64 6
  %bad = call i64 @polyloss_shares(ptr %fields, ptr %state, i64 %blocks, i64 %parts, i64 0)
  call void @polyloss_release(ptr %state)
  ret void
}

define ptr @polyloss_xla(ptr %frame) {
entry:
  %values = alloca [64 x i64]
  %arguments = alloca [5 x i64]
  %count = alloca i64
  %extension.at = getelementptr i8, ptr %frame, i64 8
  %first = load ptr, ptr %extension.at
  br label %extensions
extensions:
  %extension = phi ptr [ %first, %entry ], [ %following, %other ]
  %none = icmp eq ptr %extension, null
  br i1 %none, label %call, label %look
look:
  %type.at = getelementptr i8, ptr %extension, i64 8
  %type = load i32, ptr %type.at
  %is.metadata = icmp eq i32 %type, 1
  br i1 %is.metadata, label %metadata, label %other
other:
  %following.at = getelementptr i8, ptr %extension, i64 16
  %following = load ptr, ptr %following.at
  br label %extensions
metadata:
  %metadata.at = getelementptr i8, ptr %extension, i64 24
  %data = load ptr, ptr %metadata.at
  %major.at = getelementptr i8, ptr %data, i64 24
  store i32 0, ptr %major.at
  %minor.at = getelementptr i8, ptr %data, i64 28
  store i32 3, ptr %minor.at
  %traits.at = getelementptr i8, ptr %data, i64 32
  store i32 0, ptr %traits.at
  ret ptr null
call:
  %stage.at = getelementptr i8, ptr %frame, i64 32
  %stage = load i32, ptr %stage.at
  %is.execution = icmp eq i32 %stage, 3
  br i1 %is.execution, label %check, label %done
check:
  %api.at = getelementptr i8, ptr %frame, i64 16
  %api = load ptr, ptr %api.at
  %context.at = getelementptr i8, ptr %frame, i64 24
  %context = load ptr, ptr %context.at
  %frame.size = load i64, ptr %frame
  %frame.fits = icmp uge i64 %frame.size, 168
  %args.size.at = getelementptr i8, ptr %frame, i64 40
  %args.size = load i64, ptr %args.size.at
  %args.fit = icmp eq i64 %args.size, 40
  %rets.size.at = getelementptr i8, ptr %frame, i64 80
  %rets.size = load i64, ptr %rets.size.at
  %rets.fit = icmp eq i64 %rets.size, 40
  %attrs.size.at = getelementptr i8, ptr %frame, i64 120
  %attrs.size = load i64, ptr %attrs.size.at
  %attrs.fit = icmp eq i64 %attrs.size, 48
  %attrs.count.at = getelementptr i8, ptr %frame, i64 136
  %attrs.count = load i64, ptr %attrs.count.at
  %one.attr = icmp eq i64 %attrs.count, 1
  %api.size = load i64, ptr %api
  %api.fits = icmp uge i64 %api.size, 152
  %fit.1 = and i1 %frame.fits, %args.fit
  %fit.2 = and i1 %rets.fit, %attrs.fit
  %fit.3 = and i1 %one.attr, %api.fits
  %fit.4 = and i1 %fit.1, %fit.2
  %fits = and i1 %fit.3, %fit.4
  br i1 %fits, label %read, label %wrong
wrong:
  store i64 28, ptr %arguments
  %wrong.1 = getelementptr i64, ptr %arguments, i64 1
  store i64 0, ptr %wrong.1
  %wrong.2 = getelementptr i64, ptr %arguments, i64 2
  store ptr @polyloss_wrong_frame, ptr %wrong.2
  %wrong.3 = getelementptr i64, ptr %arguments, i64 3
  store i64 13, ptr %wrong.3
  %create.at = getelementptr i8, ptr %api, i64 48
  %create = load ptr, ptr %create.at
  %error = call ptr %create(ptr %arguments)
  ret ptr %error
read:
  %attrs.at = getelementptr i8, ptr %frame, i64 160
  %attrs = load ptr, ptr %attrs.at
  %array = load ptr, ptr %attrs
  %plan.at = getelementptr i8, ptr %array, i64 16
  %plan = load ptr, ptr %plan.at
  %field.count = load i64, ptr %plan
  %args.count.at = getelementptr i8, ptr %frame, i64 56
  %args.count = load i64, ptr %args.count.at
  %args.at = getelementptr i8, ptr %frame, i64 72
  %args = load ptr, ptr %args.at
  %rets.count.at = getelementptr i8, ptr %frame, i64 96
  %rets.count = load i64, ptr %rets.count.at
  %rets.at = getelementptr i8, ptr %frame, i64 112
  %rets = load ptr, ptr %rets.at
  %x = load ptr, ptr %args
  %rank.at = getelementptr i8, ptr %x, i64 32
  %rank = load i64, ptr %rank.at
  %dims.at = getelementptr i8, ptr %x, i64 40
  %dims = load ptr, ptr %dims.at
  br label %sizes
sizes:
  %axis = phi i64 [ 0, %read ], [ %axis.next, %size ]
  %total = phi i64 [ 1, %read ], [ %total.next, %size ]
  %last = phi i64 [ 1, %read ], [ %dim, %size ]
  %more.axes = icmp slt i64 %axis, %rank
  br i1 %more.axes, label %size, label %sized
size:
  %dim.at = getelementptr i64, ptr %dims, i64 %axis
  %dim = load i64, ptr %dim.at
  %total.next = mul i64 %total, %dim
  %axis.next = add i64 %axis, 1
  br label %sizes
sized:
  %empty = icmp eq i64 %total, 0
  br i1 %empty, label %done, label %rows
rows:
  %rows.count = udiv i64 %total, %last
  %value.1 = getelementptr i64, ptr %values, i64 1
  store i64 %total, ptr %value.1
  %value.2 = getelementptr i64, ptr %values, i64 2
  store i64 %last, ptr %value.2
  %value.3 = getelementptr i64, ptr %values, i64 3
  store i64 %rows.count, ptr %value.3
  br label %arguments.next
arguments.next:
  %i = phi i64 [ 0, %rows ], [ %i.next, %argument ]
  %more.arguments = icmp slt i64 %i, %args.count
  br i1 %more.arguments, label %argument, label %results.next
argument:
  %buffer.at = getelementptr ptr, ptr %args, i64 %i
  %buffer = load ptr, ptr %buffer.at
  %address.at = getelementptr i8, ptr %buffer, i64 24
  %address = load i64, ptr %address.at
  %argument.code = add i64 %i, 4
  %argument.at = getelementptr i64, ptr %values, i64 %argument.code
  store i64 %address, ptr %argument.at
  %i.next = add i64 %i, 1
  br label %arguments.next
results.next:
  %j = phi i64 [ 0, %arguments.next ], [ %j.next, %result ]
  %more.results = icmp slt i64 %j, %rets.count
  br i1 %more.results, label %result, label %prepare
result:
  %result.buffer.at = getelementptr ptr, ptr %rets, i64 %j
  %result.buffer = load ptr, ptr %result.buffer.at
  %result.address.at = getelementptr i8, ptr %result.buffer, i64 24
  %result.address = load i64, ptr %result.address.at
  %result.code = add i64 %j, 24
  %result.at = getelementptr i64, ptr %values, i64 %result.code
  store i64 %result.address, ptr %result.at
  %j.next = add i64 %j, 1
  br label %results.next
prepare:
  %state = call ptr @malloc(i64 560)
  %fields = getelementptr i64, ptr %state, i64 6
  br label %fields.next
fields.next:
  %k = phi i64 [ 0, %prepare ], [ %k.next, %field ]
  %more.fields = icmp slt i64 %k, %field.count
  br i1 %more.fields, label %field, label %split
field:
  %twice = shl i64 %k, 1
  %code.index = add i64 %twice, 5
  %code.at = getelementptr i64, ptr %plan, i64 %code.index
  %code = load i64, ptr %code.at
  %literal.at = getelementptr i64, ptr %code.at, i64 1
  %literal = load i64, ptr %literal.at
  %meant.at = getelementptr i64, ptr %values, i64 %code
  %is.literal = icmp eq i64 %code, 0
  %source = select i1 %is.literal, ptr %literal.at, ptr %meant.at
  %content = load i64, ptr %source
  %field.at = getelementptr i64, ptr %fields, i64 %k
  store i64 %content, ptr %field.at
  %k.next = add i64 %k, 1
  br label %fields.next
split:
  %what.at = getelementptr i64, ptr %plan, i64 1
  %what = load i64, ptr %what.at
  %whole.at = getelementptr i64, ptr %values, i64 %what
  %whole = load i64, ptr %whole.at
  %block.at = getelementptr i64, ptr %plan, i64 2
  %block = load i64, ptr %block.at
  %less = sub i64 %block, 1
  %rounded = add i64 %whole, %less
  %blocks = udiv i64 %rounded, %block
  %cutoff.at = getelementptr i64, ptr %plan, i64 3
  %cutoff = load i64, ptr %cutoff.at
  %limit.at = getelementptr i64, ptr %plan, i64 4
  %limit = load i64, ptr %limit.at
  %is.large = icmp sge i64 %total, %cutoff
  %several = icmp sgt i64 %limit, 1
  %shared = and i1 %is.large, %several
  br i1 %shared, label %pool, label %alone
alone:
  %bad = call i64 @polyloss_all(ptr %fields, i64 0, i64 %blocks)
  call void @free(ptr %state)
  ret ptr null
pool:
  store i64 1, ptr %count
  store i64 32, ptr %arguments
  %pool.1 = getelementptr i64, ptr %arguments, i64 1
  store i64 0, ptr %pool.1
  %pool.2 = getelementptr i64, ptr %arguments, i64 2
  store ptr %context, ptr %pool.2
  %pool.3 = getelementptr i64, ptr %arguments, i64 3
  store ptr %count, ptr %pool.3
  %number.at = getelementptr i8, ptr %api, i64 144
  %number = load ptr, ptr %number.at
  %number.error = call ptr %number(ptr %arguments)
  call void @polyloss_forgive(ptr %api, ptr %number.error)
  %in.pool = load i64, ptr %count
  %fewer = icmp slt i64 %in.pool, %limit
  %most = select i1 %fewer, i64 %in.pool, i64 %limit
  %few.blocks = icmp slt i64 %blocks, %most
  %used = select i1 %few.blocks, i64 %blocks, i64 %most
  %parts = mul i64 %used, 2
  store i64 0, ptr %state
  %done.at = getelementptr i64, ptr %state, i64 1
  store i64 0, ptr %done.at
  %bad.at = getelementptr i64, ptr %state, i64 2
  store i64 0, ptr %bad.at
  %holders = getelementptr i64, ptr %state, i64 3
  store i64 1, ptr %holders
  %blocks.at = getelementptr i64, ptr %state, i64 4
  store i64 %blocks, ptr %blocks.at
  %parts.at = getelementptr i64, ptr %state, i64 5
  store i64 %parts, ptr %parts.at
  store i64 40, ptr %arguments
  store ptr @polyloss_task, ptr %pool.3
  %pool.4 = getelementptr i64, ptr %arguments, i64 4
  store ptr %state, ptr %pool.4
  %schedule.at = getelementptr i8, ptr %api, i64 136
  %schedule = load ptr, ptr %schedule.at
  br label %helpers
helpers:
  %h = phi i64 [ 1, %pool ], [ %h.next, %helper ], [ %used, %lonely ]
  %more.helpers = icmp slt i64 %h, %used
  br i1 %more.helpers, label %helper.try, label %work
helper.try:
  %held = atomicrmw add ptr %holders, i64 1 acq_rel
  %helper.error = call ptr %schedule(ptr %arguments)
  %refused = icmp ne ptr %helper.error, null
  br i1 %refused, label %lonely, label %helper
helper:
  %h.next = add i64 %h, 1
  br label %helpers
lonely:
  %released = atomicrmw sub ptr %holders, i64 1 acq_rel
  call void @polyloss_forgive(ptr %api, ptr %helper.error)
  br label %helpers
work:
  %found = call i64 @polyloss_shares(ptr %fields, ptr %state, i64 %blocks, i64 %parts, i64 9223372036854775807)
  call void @polyloss_release(ptr %state)
  ret ptr null
done:
  ret ptr null
}

define void @polyloss_forgive(ptr %api, ptr %error) {
  %arguments = alloca [3 x i64]
  %none = icmp eq ptr %error, null
  br i1 %none, label %end, label %destroy
destroy:
  store i64 24, ptr %arguments
  %one = getelementptr i64, ptr %arguments, i64 1
  store i64 0, ptr %one
  %two = getelementptr i64, ptr %arguments, i64 2
  store ptr %error, ptr %two
  %destroy.at = getelementptr i8, ptr %api, i64 64
  %function = load ptr, ptr %destroy.at
  call void %function(ptr %arguments)
  br label %end
end:
  ret void
}
"""
