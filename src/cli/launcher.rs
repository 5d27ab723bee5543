//! The part of a job that this process computes, from the environment variables of launchers.

use super::args::ShardArg;
use crate::plan::Shard;
use crate::storage::{Problem, quoted};

/// The variables of launchers for the number of this process and for the number of processes. The first pair that is set counts.
const PROCESSES: [(&str, &str); 4] = [
    // Open MPI: mpirun.
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    // MPICH, Intel MPI, and others with Hydra's mpiexec.
    ("PMI_RANK", "PMI_SIZE"),
    // A Slurm step: srun. The batch script of a job is not a step, and SLURM_STEP_NUM_TASKS is not set in it.
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    // MVAPICH.
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
];

/// The given part, or the part from the launcher for `auto`.
pub(crate) fn shard(asked: ShardArg) -> Result<Shard, Problem> {
    match asked {
        ShardArg::Of(shard) => Ok(shard),
        ShardArg::Auto => auto(|name| std::env::var(name).ok()),
    }
}

/// The tasks of a Slurm array divide the job, and the processes of a launcher divide the part of each task. Without either, there is
/// one part.
fn auto(variable: impl Fn(&str) -> Option<String>) -> Result<Shard, Problem> {
    let number = |name: &str| -> Result<Option<u64>, Problem> {
        let Some(text) = variable(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| {
            refused(format!("expected a number in the variable {name}, found {}", quoted(&text)))
        })
    };
    let (id, count) = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT");
    let array = match (number(id)?, number(count)?) {
        (None, None) => Shard { index: 0, count: 1 },
        (Some(_), None) => return Err(alone(id, count)),
        (None, Some(_)) => return Err(alone(count, id)),
        (Some(id), Some(count)) => {
            let first = number("SLURM_ARRAY_TASK_MIN")?;
            let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1);
            let index =
                id.checked_sub(first.unwrap_or(0)).and_then(|from_first| from_first.checked_div(step));
            let last = number("SLURM_ARRAY_TASK_MAX")?;
            // A list such as 0-3,7 has gaps, and parts must not have gaps.
            let dense = last.zip(first).is_none_or(|(last, first)| {
                last.checked_sub(first)
                    .and_then(|span| span.checked_div(step))
                    .is_some_and(|span| span + 1 == count)
            });
            let shard = index.and_then(|index| Shard::new(index, count)).filter(|_| dense);
            shard.ok_or_else(|| refused("the task numbers of this Slurm array have gaps".into()))?
        }
    };
    let mut process = None;
    let mut incomplete = None;
    for (rank, size) in PROCESSES {
        match (number(rank)?, number(size)?) {
            (Some(index), Some(count)) => {
                process = Some(Shard::new(index, count).ok_or_else(|| {
                    refused(format!("{rank} is {index}, but must be below {size}, {count}"))
                })?);
                break;
            }
            // The batch script of a Slurm job has process 0, and is no step.
            (Some(0), None) if rank == "SLURM_PROCID" => {}
            (Some(_), None) => incomplete = incomplete.or(Some(alone(rank, size))),
            (None, Some(_)) => incomplete = incomplete.or(Some(alone(size, rank))),
            (None, None) => {}
        }
    }
    if process.is_none() && variable("PMIX_RANK").is_some() {
        incomplete = incomplete.or_else(|| {
            Some(refused("the launcher sets PMIX_RANK, but no variable for the number of processes".into()))
        });
    }
    let process = match (process, incomplete) {
        (Some(process), _) => process,
        (None, Some(incomplete)) => return Err(incomplete),
        (None, None) => Shard { index: 0, count: 1 },
    };
    let count = array.count.checked_mul(process.count);
    let index = array.index.checked_mul(process.count).and_then(|first| first.checked_add(process.index));
    index
        .zip(count)
        .and_then(|(index, count)| Shard::new(index, count))
        .ok_or_else(|| refused("the launcher gives too many parts".into()))
}

/// The problem of one variable of a pair without the other. Every process would do the whole job.
fn alone(set: &str, missing: &str) -> Problem {
    refused(format!("the launcher sets {set}, but not {missing}"))
}

fn refused(what: String) -> Problem {
    Problem::usage(format!("--shard auto: {what}")).help("give --shard I/N")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::snapshot;
    use expect_test::expect;

    fn of(variables: &[(&str, &str)]) -> Result<String, String> {
        let found = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        auto(found).map(|shard| shard.to_string()).map_err(snapshot)
    }

    const ARRAY: [(&str, &str); 5] = [
        ("SLURM_ARRAY_TASK_ID", "7"),
        ("SLURM_ARRAY_TASK_MIN", "3"),
        ("SLURM_ARRAY_TASK_MAX", "9"),
        ("SLURM_ARRAY_TASK_STEP", "2"),
        ("SLURM_ARRAY_TASK_COUNT", "4"),
    ];

    #[test]
    fn the_part_comes_from_the_launcher() {
        assert_eq!(of(&[]).unwrap(), "0/1");
        assert_eq!(of(&ARRAY).unwrap(), "2/4");
        assert_eq!(of(&[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "3")]).unwrap(), "1/3");
        assert_eq!(of(&[("PMI_RANK", "1"), ("PMI_SIZE", "3")]).unwrap(), "1/3");
        assert_eq!(of(&[("MV2_COMM_WORLD_RANK", "1"), ("MV2_COMM_WORLD_SIZE", "3")]).unwrap(), "1/3");
        assert_eq!(of(&[("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "3")]).unwrap(), "1/3");
        // The batch script of a job is one process.
        assert_eq!(of(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "3")]).unwrap(), "0/1");
        // mpirun in a step: the variables of mpirun count.
        let both = [
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "1"),
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
        ];
        assert_eq!(of(&both).unwrap(), "1/2");
        // Another launcher below mpirun can set one of its variables. Those of mpirun are enough.
        let more =
            both.into_iter().filter(|(name, _)| *name != "SLURM_STEP_NUM_TASKS").chain([("PMI_SIZE", "9")]);
        assert_eq!(of(&more.collect::<Vec<_>>()).unwrap(), "1/2");
        // Processes of an array task divide its part.
        let nested: Vec<_> =
            ARRAY.into_iter().chain([("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "3")]).collect();
        assert_eq!(of(&nested).unwrap(), "7/12");
    }

    #[test]
    fn unclear_variables_are_refused() {
        let gaps: Vec<_> = ARRAY[..4].iter().copied().chain([("SLURM_ARRAY_TASK_COUNT", "3")]).collect();
        let no_step =
            [("SLURM_ARRAY_TASK_ID", "1"), ("SLURM_ARRAY_TASK_COUNT", "2"), ("SLURM_ARRAY_TASK_STEP", "0")];
        let many = u64::MAX.to_string();
        let overflow = [
            ("SLURM_ARRAY_TASK_ID", "1"),
            ("SLURM_ARRAY_TASK_COUNT", &many),
            ("PMI_RANK", "1"),
            ("PMI_SIZE", "2"),
        ];
        // Each pair without one of its variables.
        let pairs = PROCESSES.into_iter().chain([("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")]);
        let alone = pairs.flat_map(|(rank, size)| [of(&[(rank, "1")]), of(&[(size, "2")])]);
        expect![[r#"
            --shard auto: the launcher sets OMPI_COMM_WORLD_RANK, but not OMPI_COMM_WORLD_SIZE; help: give --shard I/N
            --shard auto: the launcher sets OMPI_COMM_WORLD_SIZE, but not OMPI_COMM_WORLD_RANK; help: give --shard I/N
            --shard auto: the launcher sets PMI_RANK, but not PMI_SIZE; help: give --shard I/N
            --shard auto: the launcher sets PMI_SIZE, but not PMI_RANK; help: give --shard I/N
            --shard auto: the launcher sets SLURM_PROCID, but not SLURM_STEP_NUM_TASKS; help: give --shard I/N
            --shard auto: the launcher sets SLURM_STEP_NUM_TASKS, but not SLURM_PROCID; help: give --shard I/N
            --shard auto: the launcher sets MV2_COMM_WORLD_RANK, but not MV2_COMM_WORLD_SIZE; help: give --shard I/N
            --shard auto: the launcher sets MV2_COMM_WORLD_SIZE, but not MV2_COMM_WORLD_RANK; help: give --shard I/N
            --shard auto: the launcher sets SLURM_ARRAY_TASK_ID, but not SLURM_ARRAY_TASK_COUNT; help: give --shard I/N
            --shard auto: the launcher sets SLURM_ARRAY_TASK_COUNT, but not SLURM_ARRAY_TASK_ID; help: give --shard I/N
        "#]].assert_eq(&alone.map(Result::unwrap_err).collect::<String>());
        let refusals = [
            of(&[("PMI_RANK", "one"), ("PMI_SIZE", "2")]),
            of(&[("PMI_RANK", "2"), ("PMI_SIZE", "2")]),
            of(&[("PMIX_RANK", "2")]),
            of(&gaps),
            of(&no_step),
            of(&overflow),
        ];
        expect![[r#"
            --shard auto: expected a number in the variable PMI_RANK, found "one"; help: give --shard I/N
            --shard auto: PMI_RANK is 2, but must be below PMI_SIZE, 2; help: give --shard I/N
            --shard auto: the launcher sets PMIX_RANK, but no variable for the number of processes; help: give --shard I/N
            --shard auto: the task numbers of this Slurm array have gaps; help: give --shard I/N
            --shard auto: the task numbers of this Slurm array have gaps; help: give --shard I/N
            --shard auto: the launcher gives too many parts; help: give --shard I/N
        "#]].assert_eq(&refusals.map(Result::unwrap_err).concat());
    }
}
