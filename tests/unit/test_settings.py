import pytest

from kaito.errors import InvalidSettings
from kaito.settings import resolve

ARM = {
    "ARM_SUBSCRIPTION_ID": "s",
    "ARM_RESOURCE_GROUP": "rg",
    "AZURE_CLUSTER_NAME": "c",
    "AZURE_RESOURCE_MANAGER_URL": "http://127.0.0.1:1234/",
}


def test_defaults_run_both_controllers_with_election():
    settings = resolve({}, ARM)
    assert settings.controllers == ("workspace", "machine")
    assert settings.leader_elect
    assert settings.metrics_bind_address == ":8080"
    assert settings.health_probe_bind_address == ":8081"
    assert settings.workers == 8
    assert settings.launch_retry_max is None
    assert settings.preset_registry == "mcr.microsoft.com/aks/kaito"


def test_a_flag_beats_its_variable_and_the_variable_beats_the_default():
    environ = {**ARM, "KAITO_WORKERS": "3", "KAITO_LAUNCH_RETRY_MAX": "2.5"}
    assert resolve({}, environ).workers == 3
    assert resolve({"workers": "5"}, environ).workers == 5
    assert resolve({}, environ).launch_retry_max == 2.5


def test_an_empty_variable_is_one_that_is_not_set():
    """A chart that passes ``value: ""`` means the default."""
    environ = {**ARM, "KAITO_LEADER_ELECTION_NAMESPACE": "", "KAITO_WORKERS": ""}
    settings = resolve({}, environ)
    assert (settings.leader_election_namespace, settings.workers) == ("default", 8)


def test_a_trailing_slash_of_the_arm_address_is_dropped():
    """R24."""
    azure = resolve({}, ARM).azure
    assert azure is not None
    assert azure.arm_url == "http://127.0.0.1:1234"
    assert azure.is_loopback


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"controllers": "workspace,gpu"}, "--controllers (KAITO_CONTROLLERS)"),
        ({"controllers": ""}, "--controllers"),
        ({"workers": "0"}, "--workers (KAITO_WORKERS)"),
        ({"workers": "many"}, "--workers"),
        ({"metrics-bind-address": "8080"}, "--metrics-bind-address"),
        ({"health-probe-bind-address": ":99999"}, "--health-probe-bind-address"),
        ({"launch-retry-max": "-1"}, "--launch-retry-max"),
        ({"launch-retry-max": "soon"}, "--launch-retry-max"),
        ({"log-level": "loud"}, "--log-level"),
        ({"leader-elect": "maybe"}, "--leader-elect"),
        ({"leader-election-namespace": ""}, "--leader-election-namespace"),
        ({"namespace": "Not_A_Namespace"}, "--namespace"),
        ({"kubeconfig": "/no/such/file"}, "--kubeconfig"),
        ({"feature-gates": "Karpentr=true"}, "--feature-gates"),
        ({"feature-gates": "Karpenter=true"}, "--feature-gates"),
        ({"node-api": "nodeclaim"}, "--node-api"),
        ({"cloud-provider": "aws"}, "--provisioner"),
        ({"service-account-dir": "/nope"}, "--service-account-dir"),
        ({"webhook": "true"}, "--webhook"),
        ({"cloud-provider": "gcp"}, "--cloud-provider"),
        ({"provisioner": "karpenter"}, "--provisioner"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(flags, named):
    """M13: errors name flag and variable."""
    with pytest.raises(InvalidSettings) as refused:
        resolve(flags, ARM)
    assert named in str(refused.value)


def test_feature_gates_are_accepted_as_the_original_writes_them():
    assert resolve({"feature-gates": "Karpenter=true,Karpenter=false"}, ARM).feature_gates == {
        "Karpenter": False
    }


@pytest.mark.parametrize(
    "missing", ["ARM_SUBSCRIPTION_ID", "ARM_RESOURCE_GROUP", "AZURE_CLUSTER_NAME"]
)
def test_the_machine_controller_needs_to_know_its_cluster(missing):
    """P8.1: the variable is named, and so is the way out."""
    environ = {k: v for k, v in ARM.items() if k != missing}
    with pytest.raises(InvalidSettings, match=missing):
        resolve({}, environ)
    assert resolve({"controllers": "workspace"}, environ).azure is None
    assert resolve({"provisioner": "byo"}, environ).azure is None


@pytest.mark.parametrize("url", ["http://10.0.0.1:80", "ftp://127.0.0.1", "management"])
def test_plain_http_to_arm_is_for_loopback_only(url):
    """R24: refused at start."""
    with pytest.raises(InvalidSettings, match="AZURE_RESOURCE_MANAGER_URL"):
        resolve({}, {**ARM, "AZURE_RESOURCE_MANAGER_URL": url})


def test_the_public_cloud_wants_a_tenant():
    environ = {k: v for k, v in ARM.items() if k != "AZURE_RESOURCE_MANAGER_URL"}
    with pytest.raises(InvalidSettings, match="AZURE_TENANT_ID"):
        resolve({}, environ)
    azure = resolve({}, {**environ, "AZURE_TENANT_ID": "t"}).azure
    assert azure is not None
    assert not azure.is_loopback


def test_a_pod_finds_its_api_server_and_its_namespace(tmp_path):
    (tmp_path / "token").write_text("t")
    (tmp_path / "namespace").write_text("kaito-workspace\n")
    environ = {**ARM, "KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    settings = resolve({"service-account-dir": str(tmp_path)}, environ)
    assert settings.in_cluster is not None
    assert settings.in_cluster.host == "10.0.0.1"
    assert settings.leader_election_namespace == "kaito-workspace"
    assert resolve({}, {**environ, "SYSTEM_NAMESPACE": "x"}).leader_election_namespace == "x"


def test_a_kubeconfig_given_by_flag_beats_the_pods_own(tmp_path):
    (tmp_path / "token").write_text("t")
    (tmp_path / "config").write_text("{}")
    environ = {**ARM, "KUBERNETES_SERVICE_HOST": "h", "KUBERNETES_SERVICE_PORT": "1"}
    flags = {"service-account-dir": str(tmp_path), "kubeconfig": str(tmp_path / "config")}
    assert resolve(flags, environ).in_cluster is None
