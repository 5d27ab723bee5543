//! Which part of a job this process is, from what launchers say in environment variables.

use super::args::ShardArg;
use cntlora::plan::Shard;
use cntlora::storage::{Problem, quoted};

/// Processes that one launcher starts: the variables of the rank and of the number of processes. The first that is there counts.
const PROCESSES: [(&str, &str); 4] = [
    // Open MPI: mpirun.
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    // MPICH, Intel MPI, and others with Hydra's mpiexec.
    ("PMI_RANK", "PMI_SIZE"),
    // A Slurm step: srun. The script of a job is no step, and has no such number of tasks.
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    // MVAPICH.
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
];

/// The part that is asked for.
pub fn shard(asked: ShardArg) -> Result<Shard, Problem> {
    match asked {
        ShardArg::Of(shard) => Ok(shard),
        ShardArg::Auto => auto(|name| std::env::var(name).ok()),
    }
}

/// The processes of a launcher divide what the tasks of a Slurm array divide first; without either, there is one part.
fn auto(variable: impl Fn(&str) -> Option<String>) -> Result<Shard, Problem> {
    let number = |name: &str| -> Result<Option<u64>, Problem> {
        let Some(text) = variable(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| {
            refused(format!(
                "expected a number in the variable {name} of the launcher, found {}",
                quoted(&text)
            ))
        })
    };
    let array = match number("SLURM_ARRAY_TASK_ID")? {
        None => Shard { index: 0, count: 1 },
        Some(id) => {
            let (count, first) = (number("SLURM_ARRAY_TASK_COUNT")?, number("SLURM_ARRAY_TASK_MIN")?);
            let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1);
            let index =
                id.checked_sub(first.unwrap_or(0)).and_then(|from_first| from_first.checked_div(step));
            let last = number("SLURM_ARRAY_TASK_MAX")?;
            // A list such as 0-3,7 leaves gaps, which parts cannot have.
            let dense = last.zip(first).zip(count).is_none_or(|((last, first), count)| {
                last.checked_sub(first)
                    .and_then(|span| span.checked_div(step))
                    .is_some_and(|span| span + 1 == count)
            });
            let shard =
                index.zip(count).and_then(|(index, count)| Shard::new(index, count)).filter(|_| dense);
            shard.ok_or_else(|| {
                refused("the tasks of this Slurm array are not numbered one after the other, so that they do not say which part this is".into())
            })?
        }
    };
    let mut process = Shard { index: 0, count: 1 };
    let mut launched = false;
    for (rank, size) in PROCESSES {
        if let (Some(index), Some(count)) = (number(rank)?, number(size)?) {
            process = Shard::new(index, count)
                .ok_or_else(|| refused(format!("expected {rank} below {size}, found {index} and {count}")))?;
            launched = true;
            break;
        }
    }
    if !launched && variable("PMIX_RANK").is_some() {
        return Err(refused(
            "the launcher sets PMIX_RANK, but no variable that says how many processes there are".into(),
        ));
    }
    let count = array.count.checked_mul(process.count);
    let index = array.index.checked_mul(process.count).and_then(|first| first.checked_add(process.index));
    index
        .zip(count)
        .and_then(|(index, count)| Shard::new(index, count))
        .ok_or_else(|| refused("the launcher says that there are more parts than can be counted".into()))
}

fn refused(what: String) -> Problem {
    Problem::usage(format!("--shard auto: {what}")).help("give --shard I/N")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<String, String> {
        let found = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        auto(found).map(|shard| shard.to_string()).map_err(|problem| problem.to_string())
    }

    const ARRAY: [(&str, &str); 5] = [
        ("SLURM_ARRAY_TASK_ID", "7"),
        ("SLURM_ARRAY_TASK_MIN", "3"),
        ("SLURM_ARRAY_TASK_MAX", "9"),
        ("SLURM_ARRAY_TASK_STEP", "2"),
        ("SLURM_ARRAY_TASK_COUNT", "4"),
    ];

    #[test]
    fn launchers_say_which_part_this_is() {
        assert_eq!(of(&[]).unwrap(), "0/1");
        assert_eq!(of(&ARRAY).unwrap(), "2/4");
        assert_eq!(of(&[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "3")]).unwrap(), "1/3");
        assert_eq!(of(&[("PMI_RANK", "1"), ("PMI_SIZE", "3")]).unwrap(), "1/3");
        assert_eq!(of(&[("MV2_COMM_WORLD_RANK", "1"), ("MV2_COMM_WORLD_SIZE", "3")]).unwrap(), "1/3");
        assert_eq!(of(&[("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "3")]).unwrap(), "1/3");
        // The script of a job is one process, whatever it may start.
        assert_eq!(of(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "3")]).unwrap(), "0/1");
        // mpirun in a step: the processes are mpirun's.
        let both = [
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "1"),
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
        ];
        assert_eq!(of(&both).unwrap(), "1/2");
        // Processes of an array task divide its part.
        let nested: Vec<_> =
            ARRAY.into_iter().chain([("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "3")]).collect();
        assert_eq!(of(&nested).unwrap(), "7/12");
    }

    #[test]
    fn what_does_not_say_it_is_refused() {
        let words = |variables: &[(&str, &str)], words: &str| {
            let refusal = of(variables).unwrap_err();
            assert!(refusal.contains(words), "expected {words:?} in: {refusal}");
        };
        words(
            &[("PMI_RANK", "one"), ("PMI_SIZE", "2")],
            "expected a number in the variable PMI_RANK of the launcher, found \"one\"",
        );
        words(&[("PMI_RANK", "2"), ("PMI_SIZE", "2")], "expected PMI_RANK below PMI_SIZE, found 2 and 2");
        words(&[("PMIX_RANK", "2")], "sets PMIX_RANK, but no variable");
        words(&ARRAY[..1], "are not numbered one after the other");
        let gaps: Vec<_> = ARRAY[..4].iter().copied().chain([("SLURM_ARRAY_TASK_COUNT", "3")]).collect();
        words(&gaps, "are not numbered one after the other");
        words(
            &[("SLURM_ARRAY_TASK_ID", "1"), ("SLURM_ARRAY_TASK_COUNT", "2"), ("SLURM_ARRAY_TASK_STEP", "0")],
            "are not numbered",
        );
    }
}
