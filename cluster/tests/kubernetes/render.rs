//! Manifests: what stands in them, by structure.

use std::time::Duration;

use regatta_cluster::engine::{Engine, JobId, JobSpec};
use regatta_cluster::kubernetes::{
    Form, KubernetesConfig, KubernetesEngine, MANIFEST, Mount, Toleration, Volume, render,
};
use regatta_cluster::{GangRequest, Placement, WorkerCommand};
use serde_json::{Value, json};

pub(crate) const ALL: [(&str, fn()); 5] = [
    ("pods_are_rendered_as_they_are_submitted", pods),
    ("a_gang_is_rendered_as_an_indexed_job_and_as_a_job_set", gangs),
    ("a_ray_cluster_comes_and_goes_with_its_job", ray),
    ("what_a_site_adds_is_merged_last", site),
    ("the_manifest_gives_a_driver_no_more_than_it_needs", manifest),
];

fn config() -> KubernetesConfig {
    KubernetesConfig { namespace: Some("team".into()), ..KubernetesConfig::new("me/trainer:1") }
}

fn spec() -> JobSpec {
    let room = GangRequest::new("mnist", 4, "cpu: 8, gpu: 1, memory: 32GiB".parse().unwrap());
    let command = WorkerCommand::new("mnist").args(["train", "it's $HOME.ron"]).env("TOKEN", "tell-no-one");
    let mut spec =
        JobSpec::new(JobId::new("mnist-1").unwrap(), command, room.exclude("n7")).label("run", "r1");
    spec.time_limit = Some(Duration::from_secs(3600));
    spec
}

fn rendered(config: &KubernetesConfig, form: Form) -> Vec<Value> {
    let text = render(config, &spec(), form).unwrap();
    assert!(!text.contains("tell-no-one"), "{text}");
    let documents = text.split("---\n").filter(|text| !text.is_empty());
    documents
        .map(|text| serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}")))
        .collect()
}

fn kinds(objects: &[Value]) -> Vec<&str> {
    objects.iter().map(|object| object["kind"].as_str().unwrap()).collect()
}

fn pods() {
    let objects = rendered(&config(), Form::Pods);
    assert_eq!(kinds(&objects), ["Service", "Secret", "Pod"]);
    let [service, secret, pod] = &objects[..] else { panic!() };
    assert_eq!(service["spec"]["clusterIP"], "None");
    assert_eq!(secret["stringData"], json!({ "TOKEN": "(hidden)" }));
    assert!(objects.iter().all(|object| object["metadata"]["namespace"] == "team"));
    let container = &pod["spec"]["containers"][0];
    assert_eq!(pod["spec"]["restartPolicy"], "Never");
    assert_eq!(pod["spec"]["serviceAccountName"], "regatta");
    assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 60);
    assert_eq!(pod["spec"]["activeDeadlineSeconds"], 3540);
    assert_eq!(container["envFrom"], json!([{ "secretRef": { "name": "mnist-1" } }]));
    assert_eq!(
        container["command"].as_array().unwrap()[4..],
        [json!("mnist"), json!("train"), json!("it's $HOME.ron")]
    );
    assert_eq!(container["resources"]["limits"], json!({ "cpu": "500m", "memory": "536870912" }));
    let terms = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let field = json!({ "key": "metadata.name", "operator": "NotIn", "values": ["n7"] });
    assert_eq!(terms["nodeSelectorTerms"], json!([{ "matchFields": [field] }]));
    // The engine renders the same.
    let by_engine = KubernetesEngine::new(config()).render(&spec()).unwrap();
    assert_eq!(by_engine, render(&config(), &spec(), Form::Pods).unwrap());
    let as_job = KubernetesConfig { manifest: Form::RayJob, program: Some("/bin/mnist".into()), ..config() };
    let text = KubernetesEngine::new(as_job).render(&spec()).unwrap();
    assert!(text.contains("RayJob") && text.contains("/bin/mnist"), "{text}");
}

fn gangs() {
    let objects = rendered(&config(), Form::IndexedJob);
    assert_eq!(kinds(&objects), ["Service", "Secret", "Job"]);
    let job = &objects[2]["spec"];
    let wanted = json!(["Indexed", 4, 4, 0, 3600]);
    let fields = ["completionMode", "completions", "parallelism", "backoffLimit", "activeDeadlineSeconds"];
    assert_eq!(Value::from_iter(fields.map(|field| job[field].clone())), wanted);
    let pod = &job["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["resources"]["limits"]["nvidia.com/gpu"], "1");
    assert_eq!(pod["subdomain"], "mnist-1");
    assert!(
        pod.get("hostname").is_none() && objects[2]["spec"]["template"]["metadata"].get("name").is_none()
    );
    let variable = |name: &str| {
        let all = container["env"].as_array().unwrap();
        all.iter().find(|variable| variable["name"] == name).unwrap_or_else(|| panic!("{name}")).clone()
    };
    assert_eq!(variable("MASTER_ADDR")["value"], "mnist-1-0.mnist-1");
    assert_eq!(variable("WORLD_SIZE")["value"], "4");
    let index = "metadata.annotations['batch.kubernetes.io/job-completion-index']";
    assert_eq!(variable("RANK")["valueFrom"]["fieldRef"]["fieldPath"], index);
    // Their service finds them.
    assert_eq!(
        objects[0]["spec"]["selector"]["regatta/job"],
        job["template"]["metadata"]["labels"]["regatta/job"]
    );

    let objects = rendered(&config(), Form::JobSet);
    assert_eq!(kinds(&objects), ["Secret", "JobSet"]);
    let set = &objects[1];
    assert_eq!(set["apiVersion"], "jobset.x-k8s.io/v1alpha2");
    assert_eq!(set["spec"]["network"], json!({ "enableDNSHostnames": true, "subdomain": "mnist-1" }));
    let jobs = &set["spec"]["replicatedJobs"];
    assert_eq!((&jobs[0]["name"], &jobs[0]["replicas"]), (&json!("workers"), &json!(1)));
    let container = &jobs[0]["template"]["spec"]["template"]["spec"]["containers"][0];
    let first = container["env"]
        .as_array()
        .unwrap()
        .iter()
        .find(|variable| variable["name"] == "MASTER_ADDR")
        .unwrap();
    assert_eq!(first["value"], "mnist-1-workers-0-0.mnist-1");
}

fn ray() {
    let objects = rendered(&config(), Form::RayJob);
    assert_eq!(kinds(&objects), ["Secret", "RayJob"]);
    let job = &objects[1]["spec"];
    assert_eq!(job["entrypoint"], "'mnist' 'train' 'it'\\''s $HOME.ron'");
    let fields = [
        "submissionMode",
        "shutdownAfterJobFinishes",
        "backoffLimit",
        "jobId",
        "activeDeadlineSeconds",
        "metadata",
    ];
    let wanted = json!(["HTTPMode", true, 0, "mnist-1", 3600, { "run": "r1" }]);
    assert_eq!(Value::from_iter(fields.map(|field| job[field].clone())), wanted);
    let head = &job["rayClusterSpec"]["headGroupSpec"];
    assert_eq!(head["rayStartParams"]["num-cpus"], "0");
    assert_eq!(
        head["template"]["spec"]["containers"][0]["ports"][1],
        json!({ "containerPort": 8265, "name": "dashboard" })
    );
    let workers = &job["rayClusterSpec"]["workerGroupSpecs"][0];
    assert_eq!(
        (&workers["replicas"], &workers["minReplicas"], &workers["maxReplicas"]),
        (&json!(4), &json!(4), &json!(4))
    );
    let container = &workers["template"]["spec"]["containers"][0];
    assert_eq!(container["resources"]["limits"]["cpu"], "8");
    assert!(container.get("command").is_none(), "KubeRay says what runs in it");

    let mut elastic = spec();
    elastic.room = elastic.room.workers(2..=4).placement(Placement::Spread);
    elastic.spare_nodes = 1;
    let text = render(&config(), &elastic, Form::RayCluster).unwrap();
    let cluster: Value = serde_saphyr::from_str(text.rsplit("---\n").next().unwrap()).unwrap();
    assert_eq!(cluster["kind"], "RayCluster");
    let workers = &cluster["spec"]["workerGroupSpecs"][0];
    assert_eq!((&workers["minReplicas"], &workers["maxReplicas"]), (&json!(2), &json!(5)));
    assert_eq!(cluster["spec"]["enableInTreeAutoscaling"], true);
}

fn site() {
    let mount = |path: &str, volume: Volume| Mount { path: path.into(), volume, read_only: false };
    let mut config = config();
    config.volumes = vec![
        mount("/data", Volume::Claim("data".into())),
        mount(
            "/dev/shm",
            Volume::Memory("memory: 1GiB".parse::<regatta_cluster::Resources>().unwrap().memory),
        ),
    ];
    config.tolerations = vec![Toleration { key: Some("spot".into()), ..Toleration::default() }];
    config.node_selector.insert("pool".into(), "gpu".into());
    config.labels.insert("kueue.x-k8s.io/queue-name".into(), "q".into());
    config.priority_class = Some("high".into());
    config.pod.insert("securityContext".into(), json!({ "runAsNonRoot": true }));
    config.container.insert("imagePullPolicy".into(), json!("Always"));
    let pod = rendered(&config, Form::Pods).pop().unwrap();
    let spec = &pod["spec"];
    assert_eq!(
        spec["volumes"][0],
        json!({ "name": "volume-0", "persistentVolumeClaim": { "claimName": "data" } })
    );
    assert_eq!(spec["volumes"][1]["emptyDir"], json!({ "medium": "Memory", "sizeLimit": "1073741824" }));
    assert_eq!(spec["containers"][0]["volumeMounts"][1]["mountPath"], "/dev/shm");
    assert_eq!(spec["tolerations"], json!([{ "key": "spot", "operator": "Exists" }]));
    assert_eq!(spec["nodeSelector"], json!({ "pool": "gpu" }));
    assert_eq!(spec["priorityClassName"], "high");
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(spec["containers"][0]["imagePullPolicy"], "Always");
    assert_eq!(pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], "q");
    assert_eq!(pod["metadata"]["labels"]["regatta/role"], "driver");
}

fn manifest() {
    let documents: Vec<Value> =
        MANIFEST.split("\n---\n").map(|text| serde_saphyr::from_str(text).unwrap()).collect();
    let driver = documents.iter().find(|object| object["metadata"]["name"] == "regatta-driver").unwrap();
    let text = serde_json::to_string(&driver["rules"]).unwrap();
    assert!(!text.contains('*') && !text.contains("exec") && !text.contains("deletecollection"), "{text}");
    let secrets = driver["rules"]
        .as_array()
        .unwrap()
        .iter()
        .find(|rule| rule["resources"] == json!(["secrets"]))
        .unwrap();
    assert_eq!(secrets["verbs"], json!(["create"]));
}
